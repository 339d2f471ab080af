"""Conversion: bit for bit both ways, and one sentence for whatever cannot be converted."""

import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections import OrderedDict
from types import SimpleNamespace

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import weights_conversion.lpips
from jaxcircuits.models import ARCHITECTURES
from tests.torchvision_oracle import torchvision
from weights_conversion import (
    ConversionError,
    digest,
    is_checkpoint,
    load_checkpoint,
    read_preprocessing,
    read_state,
    save_checkpoint,
    to_flax,
    to_torch,
    write_state,
)

rng = np.random.default_rng(0)

# A convolution, a BatchNorm, a nested dense layer: small, but with every rule, dotted names and nesting.
TEMPLATE = {
    "params": {
        "features.0": {"kernel": jax.ShapeDtypeStruct((5, 4, 3, 2), np.float32), "bias": np.zeros(2, np.float32)},
        "features.10": {"scale": np.zeros(2, np.float32), "bias": np.zeros(2, np.float32)},
        "head": {"fc.1": {"kernel": np.zeros((6, 7), np.float32)}},
    },
    "batch_stats": {"features.10": {"mean": np.zeros(2, np.float32), "var": np.zeros(2, np.float32)}},
}


def small_state():
    shapes = {
        "features.0.weight": (2, 3, 5, 4),
        "features.0.bias": (2,),
        "features.10.weight": (2,),
        "features.10.bias": (2,),
        "features.10.running_mean": (2,),
        "features.10.running_var": (2,),
        "head.fc.1.weight": (7, 6),
    }
    counter = {"features.10.num_batches_tracked": np.array(2**40 + 1)}
    return {key: rng.standard_normal(shape, np.float32) for key, shape in shapes.items()} | counter


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape), key
        assert found[key].tobytes() == value.tobytes(), key
        assert found[key].flags.c_contiguous, key


def tensors(state):
    return OrderedDict((key, torch.from_numpy(value.copy())) for key, value in state.items())


def one_sentence(caught):
    """The message, after checking that a person would see only that: one line, no traceback of a cause."""
    message = str(caught.value)
    assert "\n" not in message and len(message) > 20
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return message


# ---- Rules


def test_kernels_are_turned_as_pytorch_and_flax_want_them():
    state = small_state()
    variables = to_flax(state, TEMPLATE).variables
    assert variables["params"]["features.0"]["kernel"][4, 3, 2, 1] == state["features.0.weight"][1, 2, 4, 3]
    assert variables["params"]["head"]["fc.1"]["kernel"][5, 6] == state["head.fc.1.weight"][6, 5]
    assert jax.tree.structure(variables) == jax.tree.structure(TEMPLATE)
    np.testing.assert_array_equal(variables["batch_stats"]["features.10"]["var"], state["features.10.running_var"])
    np.testing.assert_array_equal(variables["params"]["features.10"]["scale"], state["features.10.weight"])


def test_layer_scales_are_turned_from_channels_first_to_channels_last():
    state = {"a.layer_scale": rng.standard_normal((5, 1, 1)).astype(np.float32)}
    template = {"params": {"a": {"layer_scale": np.zeros((1, 1, 5), np.float32)}}}
    variables = to_flax(state, template).variables
    assert (variables["params"]["a"]["layer_scale"][0, 0] == state["a.layer_scale"][:, 0, 0]).all()
    assert_same(to_torch(variables), state)
    with pytest.raises(ConversionError, match=r"float32 \(1, 1, 5\), expected float32 \(5, 1, 1\)"):
        to_flax({"a.layer_scale": state["a.layer_scale"].transpose(1, 2, 0)}, template)


@st.composite
def templates(draw):
    """Modules of all kinds at random paths, no two with the same PyTorch name."""
    part = st.from_regex(r"[a-z][a-z0-9]{0,3}(\.[0-9]{1,2})?", fullmatch=True)
    paths = draw(st.lists(st.lists(part, min_size=1, max_size=3), min_size=1, max_size=5, unique_by=".".join))
    # A module's name may not begin another's: a leaf could then stand in a module's place.
    paths = [p for p in paths if not any(p != q and ".".join(q).startswith(".".join(p)) for q in paths)]
    variables = {"params": {}, "batch_stats": {}}

    def leaf(collection, path, name, shape):
        place = variables[collection]
        for step in path:
            place = place.setdefault(step, {})
        place[name] = draw(hnp.arrays(np.float32, shape, elements=st.floats(width=32)))

    sizes = st.integers(1, 3)
    for path in paths:
        outputs = draw(sizes)
        if draw(st.booleans()):
            for collection, name in (("params", "scale"), ("batch_stats", "mean"), ("batch_stats", "var")):
                leaf(collection, path, name, outputs)
        else:
            window = draw(st.sampled_from([(), (2,), (1, 3), (3, 2, 1)]))
            leaf("params", path, "kernel", (*window, draw(sizes), outputs))
        if draw(st.booleans()):
            leaf("params", path, "bias", outputs)
        if draw(st.booleans()):
            leaf("params", path, "layer_scale", (1, 1, outputs))
    return variables


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(templates())
def test_to_flax_and_to_torch_are_inverses(variables):
    state = to_torch(variables)
    assert len(state) == len(jax.tree.leaves(variables))
    found = to_flax(state, variables).variables
    assert jax.tree.structure(found) == jax.tree.structure(variables)
    assert [x.tobytes() for x in jax.tree.leaves(found)] == [x.tobytes() for x in jax.tree.leaves(variables)]
    assert_same(to_torch(found), state)


def test_one_error_lists_everything_that_does_not_fit():
    state = small_state()
    del state["features.0.bias"], state["features.10.running_var"]
    state |= {"aux.weight": np.zeros(1), "other.num_batches_tracked": np.array(1)}
    state["head.fc.1.weight"] = np.zeros((8, 6), np.float32)
    state["features.10.bias"] = np.zeros(2, np.float64)
    with pytest.raises(ConversionError) as caught:
        to_flax(state, TEMPLATE)
    message = one_sentence(caught)
    assert "missing: features.0.bias, features.10.running_var;" in message
    assert "not in the model: aux.weight, other.num_batches_tracked;" in message
    assert "head.fc.1.weight is float32 (8, 6), expected float32 (7, 6)" in message
    assert "features.10.bias is float64 (2,), expected float32 (2,)" in message
    assert "features.0.weight" not in message


def test_optional_keys_become_zeros_and_are_left_out_on_the_way_back():
    state = small_state()
    kept = {key: value for key, value in state.items() if not key.startswith("head")}
    converted = to_flax(kept, TEMPLATE, optional=lambda key: key.startswith("head"))
    assert converted.missing == ("head.fc.1.weight",)
    np.testing.assert_array_equal(converted.variables["params"]["head"]["fc.1"]["kernel"], np.zeros((6, 7)))
    assert_same(to_torch(converted.variables, extras=converted.extras, missing=converted.missing), kept)


@pytest.mark.parametrize(
    "variables, words",
    [
        ({"params": {"a": {"gamma": np.zeros(1)}}}, "params/a/gamma"),
        ({"params": {"a": {"kernel": np.zeros(3)}}}, "params/a/kernel"),
        ({"cache": {"a": {"bias": np.zeros(3)}}}, "cache/a/bias"),
        ({"params": {"a": {"b": {"bias": np.zeros(3)}}, "a.b": {"bias": np.zeros(3)}}}, "a.b.bias"),
        ({"params": {"a": {"kernel": np.zeros((2, 3)), "scale": np.zeros(3)}}}, "a.weight"),
    ],
)
def test_variables_without_a_rule_are_refused_by_name(variables, words):
    with pytest.raises(ConversionError, match=words):
        to_torch(variables)
    with pytest.raises(ConversionError, match=words):
        to_flax({}, variables)


def test_digest_depends_on_the_weights_only():
    state = small_state()
    first = digest(state)
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert digest(dict(reversed(state.items()))) == first
    assert digest({key: np.asfortranarray(value) for key, value in state.items()}) == first
    assert digest({key: value for key, value in state.items() if "num_batches" not in key}) == first
    assert digest(state | {"features.0.bias": np.nextafter(state["features.0.bias"], 9, dtype=np.float32)}) != first
    assert digest(state | {"features.0.bias": state["features.0.bias"][None]}) != first
    assert digest(state | {"features.0.bias": state["features.0.bias"].view(np.int32)}) != first
    assert digest({key.replace("head", "tail"): value for key, value in state.items()}) != first


# ---- Round trips through files


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".safetensors"])
def test_round_trip_bit_for_bit(tmp_path, ending):
    """File -> state dict -> Flax -> orbax -> Flax -> state dict -> file."""
    state = small_state()
    state["features.0.weight"][0, 0, 0, :3] = np.nan, np.inf, -0.0
    write_state(tmp_path / f"a{ending}", state)
    converted = to_flax(read_state(tmp_path / f"a{ending}", "any"), TEMPLATE)
    save_checkpoint(tmp_path / "checkpoint", converted.variables, converted.extras, {"note": "kept"})
    variables, extras, manifest = load_checkpoint(tmp_path / "checkpoint", TEMPLATE)
    assert jax.tree.structure(variables) == jax.tree.structure(TEMPLATE)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(variables))
    assert manifest["note"] == "kept" and manifest["sha256"] == digest(state)
    write_state(tmp_path / f"b{ending}", to_torch(variables, extras=extras))
    assert_same(read_state(str(tmp_path / f"b{ending}"), "any"), state)
    assert_same(read_state(tmp_path / "checkpoint", "any"), state)
    assert sorted(os.listdir(tmp_path)) == [f"a{ending}", f"b{ending}", "checkpoint"]


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_arrays_in_any_layout_are_written_right(tmp_path, ending):
    state = {"a.weight": rng.standard_normal((4, 5, 2, 3), np.float32).T, "b.weight": np.arange(12.0)[::3]}
    state = {key: value.astype(np.float32, order="K") for key, value in state.items()}
    write_state(tmp_path / f"a{ending}", state)
    assert_same(read_state(tmp_path / f"a{ending}", "any"), {key: value.copy("C") for key, value in state.items()})


def test_another_number_of_classes():
    def template(classes):
        module = ARCHITECTURES["alexnet"](num_classes=classes)
        return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))

    with torch.device("meta"):
        shapes = {key: value.shape for key, value in torchvision().models.alexnet(num_classes=10).state_dict().items()}
    state = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
    state["classifier.6.bias"] = rng.standard_normal(10, np.float32)
    variables = to_flax(state, template(10)).variables
    np.testing.assert_array_equal(variables["params"]["classifier.6"]["bias"], state["classifier.6.bias"])
    with pytest.raises(ConversionError) as caught:
        to_flax(state, template(1000))
    assert one_sentence(caught) == (
        "the weights do not fit the model; of the wrong kind: "
        "classifier.6.bias is float32 (10,), expected float32 (1000,), "
        "classifier.6.weight is float32 (10, 4096), expected float32 (1000, 4096)"
    )


def test_a_trained_pytorch_model_round_trips(tmp_path):
    layers = [torch.nn.Conv2d(3, 2, (5, 4)), torch.nn.ReLU(), torch.nn.BatchNorm2d(2)]
    model = torch.nn.ModuleDict({"features": torch.nn.Sequential(*layers), "head": torch.nn.Linear(2, 3)})
    for _ in range(3):
        model["features"](torch.randn(2, 3, 8, 8))  # moves the running averages and the counter
    torch.save({"epoch": 3, "state_dict": torch.nn.DataParallel(model).state_dict()}, tmp_path / "a.pth")

    state = read_state(tmp_path / "a.pth", "any")
    assert_same(state, {key: value.numpy() for key, value in model.state_dict().items()})
    statistics = {"mean": np.zeros(2, np.float32), "var": np.zeros(2, np.float32)}
    template = {
        "params": {
            "features": {"0": TEMPLATE["params"]["features.0"], "2": TEMPLATE["params"]["features.10"]},
            "head": {"kernel": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)},
        },
        "batch_stats": {"features": {"2": statistics}},
    }
    converted = to_flax(state, template)
    assert converted.extras["features.2.num_batches_tracked"] == 3
    write_state(tmp_path / "b.pth", to_torch(converted.variables, extras=converted.extras))
    model.load_state_dict(torch.load(tmp_path / "b.pth", weights_only=True), strict=True)
    assert_same({key: value.numpy() for key, value in model.state_dict().items()}, state)


def test_mnasnet_loads_what_is_written(tmp_path):
    """It refuses a state dict that does not tell the version of its module."""
    model = torchvision().models.mnasnet0_5(num_classes=2)
    write_state(tmp_path / "a.pth", {key: np.ones_like(value.numpy()) for key, value in model.state_dict().items()})
    model.load_state_dict(torch.load(tmp_path / "a.pth", weights_only=True))
    assert all((value == 1).all() for value in model.state_dict().values())


@pytest.mark.parametrize("nest", ["state_dict", "model_state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_what_training_scripts_save(tmp_path, nest, prefix):
    state = small_state()
    content = OrderedDict((prefix + key, value) for key, value in tensors(state).items())
    torch.save({"epoch": 1, nest: content} if nest else content, tmp_path / "a.pt")
    assert_same(read_state(tmp_path / "a.pt", "any"), state)


def test_a_prefix_that_not_all_names_share_stays(tmp_path):
    state = {"module.weight": np.ones((1, 1), np.float32), "head.weight": np.ones((1, 1), np.float32)}
    write_state(tmp_path / "a.safetensors", state)
    assert_same(read_state(tmp_path / "a.safetensors", "any"), state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floating_point_types_become_float32(tmp_path, dtype):
    from safetensors.torch import save_file

    values = torch.tensor([[1.5, -0.25], [3.0, 1024.0]])  # exact in all of them
    torch.save({"a.weight": values.to(dtype)}, tmp_path / "a.pth")
    save_file({"a.weight": values.to(dtype)}, tmp_path / "a.safetensors")
    assert_same(read_state(tmp_path / "a.pth", "any"), {"a.weight": values.numpy()})
    assert_same(read_state(tmp_path / "a.safetensors", "any"), {"a.weight": values.numpy()})


# ---- Sources


def test_lpips_weights_of_alexnet():
    state = read_state("lpips", "alexnet")
    np.testing.assert_allclose(state["features.0.weight"][0, 0, 0, :3], [0.1186, 0.0941, 0.0954], atol=5e-5)
    module = ARCHITECTURES["alexnet"]()
    template = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    converted = to_flax(state, template, optional=lambda key: key.startswith("classifier."))
    assert len(converted.missing) == 6
    assert_same(to_torch(converted.variables, missing=converted.missing), state)
    with pytest.raises(ConversionError, match=r"missing: classifier\.1\.bias, classifier\.1\.weight, "):
        to_flax(state, template)


def test_lpips_weights_of_vgg16_have_torchvisions_names():
    state = read_state("lpips", "vgg16")
    with torch.device("meta"):
        expected = torchvision().models.vgg16().state_dict()
    shapes = {key: tuple(value.shape) for key, value in expected.items() if key.startswith("features.")}
    assert {key: value.shape for key, value in state.items()} == shapes


def test_lpips_has_no_other_architecture():
    with pytest.raises(ConversionError, match=r"alexnet and vgg16 only, not for 'vgg11'") as caught:
        read_state("lpips", "vgg11")
    one_sentence(caught)


def test_lpips_package_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConversionError, match=r"pip install 'jaxcircuits\[demo\]'") as caught:
        read_state("lpips", "alexnet")
    one_sentence(caught)


@pytest.mark.parametrize("content", [b"other bytes", None])
def test_lpips_file_is_another_or_missing(monkeypatch, tmp_path, content):
    (tmp_path / "weights").mkdir()
    if content:
        (tmp_path / "weights" / "alexnet.ckpt").write_bytes(content)
    package = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: package)
    with pytest.raises(ConversionError, match=r"alexnet\.ckpt") as caught:
        read_state("lpips", "alexnet")
    one_sentence(caught)


class Hostile:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_the_lpips_unpickler_admits_arrays_only(tmp_path):
    pickle.loads(pickle.dumps(Hostile(tmp_path / "made")))
    assert (tmp_path / "made").exists()  # the weapon works
    (tmp_path / "made").unlink()

    load = weights_conversion.lpips.load_arrays
    arrays = {"a": {"b": np.arange(6.0).reshape(2, 3)}}
    np.testing.assert_array_equal(load(pickle.dumps(arrays))["a"]["b"], arrays["a"]["b"])
    for content in (Hostile(tmp_path / "made"), np.array([Hostile(tmp_path / "made")], object), np.sum, eval):
        with pytest.raises(ConversionError, match="which is no array"):
            load(pickle.dumps(content))
    with pytest.raises(ConversionError, match="not a pickle"):
        load(pickle.dumps(arrays)[:-20])
    assert not (tmp_path / "made").exists()


def test_torchvision_source(monkeypatch):
    models = torchvision().models
    state, asked = small_state(), []

    def get_state_dict(weights, **options):
        asked.append((str(weights), options["progress"]))
        return tensors(state)

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", get_state_dict)
    assert_same(read_state("torchvision", "alexnet"), state)
    read_state("torchvision:IMAGENET1K_FEATURES", "vgg16")
    assert asked == [("AlexNet_Weights.IMAGENET1K_V1", False), ("VGG16_Weights.IMAGENET1K_FEATURES", False)]

    with pytest.raises(ConversionError, match=r"no weights 'V9', only IMAGENET1K_V1"):
        read_state("torchvision:V9", "alexnet")
    with pytest.raises(ConversionError, match=r"no weights for 'alexnut'"):
        read_state("torchvision", "alexnut")


def test_torchvision_download_fails(monkeypatch):
    def get_state_dict(weights, **options):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(torchvision().models.WeightsEnum, "get_state_dict", get_state_dict)
    with pytest.raises(ConversionError, match=r"https://.*alexnet.*Network is unreachable") as caught:
        read_state("torchvision", "alexnet")
    one_sentence(caught)


@pytest.mark.parametrize(
    "error, words",
    [
        (ModuleNotFoundError("No module named 'torchvision'"), r"pip install 'jaxcircuits\[convert\]'"),
        (RuntimeError("operator torchvision::nms does not exist"), "builds that fit each other"),
    ],
)
def test_torchvision_cannot_be_imported(monkeypatch, error, words):
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "torchvision":
                raise error

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    with pytest.raises(ConversionError, match=words) as caught:
        read_state("torchvision", "alexnet")
    assert str(error) in one_sentence(caught)


def test_pytorch_missing(monkeypatch, tmp_path):
    write_state(tmp_path / "a.pth", small_state())
    monkeypatch.setitem(sys.modules, "torch", None)
    for act in (lambda: read_state(tmp_path / "a.pth", "any"), lambda: write_state(tmp_path / "b.pth", small_state())):
        with pytest.raises(ConversionError, match=r"needs PyTorch .*pip install 'jaxcircuits\[convert\]'") as caught:
            act()
        one_sentence(caught)


def test_importing_is_cheap():
    """The heavy packages are imported where they are needed."""
    code = "import sys, weights_conversion; print({'torch', 'orbax', 'safetensors', 'jax'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# ---- Files that are hostile, broken or something else


def refused(source):
    with pytest.raises(ConversionError) as caught:
        read_state(source, "alexnet")
    return one_sentence(caught)


@pytest.mark.parametrize("container", ["zip", "plain"])
def test_no_code_in_a_file_is_run(tmp_path, container):
    path, made = tmp_path / "a.pth", tmp_path / "made"
    content = {"features.0.weight": Hostile(made)}
    if container == "zip":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    assert str(path) in refused(path)
    assert not made.exists()


def valid(tmp_path, ending):
    write_state(tmp_path / f"valid{ending}", small_state())
    return (tmp_path / f"valid{ending}").read_bytes()


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_truncated_and_empty_files(tmp_path, ending):
    content, path = valid(tmp_path, ending), tmp_path / f"a{ending}"
    for length in (0, 1, 7, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert str(path) in refused(path)


@pytest.mark.parametrize(
    "content",
    [
        (2**40).to_bytes(8, "little") + b"{}",
        (2**63).to_bytes(8, "little") + b"{}",
        (73).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,39999999996]}}0000',
        b"\2\0\0\0\0\0\0\0{}",
        b"\2\0\0\0\0\0\0\0[]",
    ],
)
def test_safetensors_headers_that_lie(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert str(path) in refused(path)


def test_a_zip_file_that_claims_a_huge_tensor(tmp_path):
    """A storage of 77 numbers behind a tensor of a billion."""
    buffer, path = io.BytesIO(), tmp_path / "a.pth"
    torch.save({"a.weight": torch.zeros(77)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                assert content.count(b"K\x4d") == 2  # 77, as the length of the storage and of the tensor
                content = content.replace(b"K\x4d", b"J\xff\xff\xff\x3f")
            new.writestr(name, content)
    assert str(path) in refused(path)


@pytest.mark.parametrize(
    "content, words",
    [
        ({"epoch": 3, "a.weight": torch.zeros(1)}, "not tensors by name: epoch"),
        ({"state_dict": {"a.weight": torch.zeros(1), "b": [1], 5: torch.zeros(1)}}, "not tensors by name: b, 5"),
        (torch.zeros(3), "holds a Tensor"),
        ([torch.zeros(3)], "holds a list"),
        ({}, "holds no weights"),
        ({"a.weight": torch.zeros(3).to_sparse()}, "that NumPy cannot"),
        ({"a.weight": torch.zeros(3, device="meta")}, "that NumPy cannot"),
    ],
)
def test_pytorch_files_of_something_else(tmp_path, content, words):
    torch.save(content, tmp_path / "a.pth")
    assert words in refused(tmp_path / "a.pth")


def test_paths_that_are_no_weights(tmp_path):
    assert "there is no file" in refused(tmp_path / "none.pth")
    assert "there is no file nothing" in refused("nothing")
    assert "there is no file" in refused("a" * 5000)
    assert "is no checkpoint" in refused(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"x")
    assert ".pth, .pt, .bin, .safetensors" in refused(tmp_path / "a.npz")


# ---- Writing: whole or not at all


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_failed_write_leaves_nothing_behind(tmp_path, ending):
    with pytest.raises(ConversionError, match="No such file or directory") as caught:
        write_state(tmp_path / "missing" / f"a{ending}", small_state())
    one_sentence(caught)
    (tmp_path / f"a{ending}").mkdir()
    with pytest.raises(ConversionError, match="cannot write"):
        write_state(tmp_path / f"a{ending}", small_state())
    with pytest.raises(ConversionError, match="none of the endings"):
        write_state(tmp_path / "a.npz", small_state())
    assert os.listdir(tmp_path) == [f"a{ending}"] and os.listdir(tmp_path / f"a{ending}") == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "checkpoint"])
def test_a_full_disk_leaves_what_was_there(tmp_path, name):
    """A limit on file sizes stands in for the full disk; the older file or directory stays."""
    state = small_state()
    if name == "checkpoint":
        save_checkpoint(tmp_path / name, {}, {}, {"note": "old"})
    else:
        write_state(tmp_path / name, state)
    code = """
import resource, sys, numpy as np, weights_conversion as wc
state = {"a.weight": np.random.default_rng(0).standard_normal((300, 300), np.float32)}
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
try:
    if sys.argv[1].endswith("checkpoint"):
        wc.save_checkpoint(sys.argv[1], {"params": {"a": {"kernel": state["a.weight"]}}}, {}, {}, overwrite=True)
    else:
        wc.write_state(sys.argv[1], state)
except wc.ConversionError as err:
    print("refused:", err)
"""
    command = [sys.executable, "-c", code, str(tmp_path / name)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("refused: cannot write") and run.stdout.count("\n") == 1
    assert os.listdir(tmp_path) == [name]
    if name == "checkpoint":
        assert load_checkpoint(tmp_path / name)[2]["note"] == "old"
    else:
        assert_same(read_state(tmp_path / name, "any"), state)


# ---- Checkpoints


@pytest.fixture
def checkpoint(tmp_path):
    converted = to_flax(small_state(), TEMPLATE)
    save_checkpoint(tmp_path / "checkpoint", converted.variables, converted.extras, {})
    return tmp_path / "checkpoint"


def test_a_checkpoint_is_overwritten_only_when_asked(checkpoint):
    before = load_checkpoint(checkpoint)[2]
    with pytest.raises(ConversionError, match="exists already") as caught:
        save_checkpoint(checkpoint, {"params": {"a": {"bias": np.ones(1, np.float32)}}}, {}, {})
    one_sentence(caught)
    assert load_checkpoint(checkpoint)[2] == before
    save_checkpoint(checkpoint, {"params": {"a": {"bias": np.ones(1, np.float32)}}}, {}, {}, overwrite=True)
    assert load_checkpoint(checkpoint)[0] == {"params": {"a": {"bias": np.ones(1, np.float32)}}}
    assert os.listdir(checkpoint.parent) == ["checkpoint"]


def test_a_link_to_a_checkpoint_is_exchanged(checkpoint):
    before, link = load_checkpoint(checkpoint)[2], checkpoint.with_name("link")
    link.symlink_to(checkpoint)
    save_checkpoint(link, {"params": {"a": {"bias": np.ones(1, np.float32)}}}, {}, {}, overwrite=True)
    assert load_checkpoint(link)[0] == {"params": {"a": {"bias": np.ones(1, np.float32)}}}
    assert load_checkpoint(checkpoint)[2] == before
    assert sorted(os.listdir(checkpoint.parent)) == ["checkpoint", "link"]


def test_other_directories_are_never_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConversionError, match="no checkpoint, so it is not overwritten"):
        save_checkpoint(tmp_path, {"params": {}}, {}, {}, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_checkpoint_keeps_what_was_missing(tmp_path):
    state = {key: value for key, value in small_state().items() if not key.startswith("head")}
    converted = to_flax(state, TEMPLATE, optional=lambda key: key.startswith("head"))
    save_checkpoint(tmp_path / "a", converted.variables, converted.extras, {"missing": converted.missing})
    assert load_checkpoint(tmp_path / "a", TEMPLATE)[2]["missing"] == ["head.fc.1.weight"]
    assert load_checkpoint(tmp_path / "a")[2]["sha256"] == digest(state)
    assert_same(read_state(tmp_path / "a", "any"), state)


def test_a_checkpoint_must_fit_the_template(checkpoint):
    with pytest.raises(ConversionError, match=r"missing: b\.bias; not in the model: .*features\.0\.bias"):
        load_checkpoint(checkpoint, {"params": {"b": {"bias": np.ones(1, np.float32)}}})


def remove_weights(checkpoint):
    (checkpoint / "weights").rename(checkpoint / "elsewhere")


def swap_weights(checkpoint):
    other = {"params": {"features.0": {"bias": np.ones(2, np.float32)}}}
    save_checkpoint(checkpoint / "other", other, {}, {})
    remove_weights(checkpoint)
    (checkpoint / "other" / "weights").rename(checkpoint / "weights")


def edit_manifest(**changes):
    def edit(checkpoint):
        path = checkpoint / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


@pytest.mark.parametrize(
    "harm, words",
    [
        (remove_weights, "is broken"),
        (swap_weights, "its weights are not those its manifest describes"),
        (edit_manifest(sha256="0" * 64), "its weights are not those its manifest describes"),
        (edit_manifest(missing=["features.0.bias"]), "its weights are not those its manifest describes"),
        (edit_manifest(missing=7), "is broken"),
        (edit_manifest(format="other 3"), "has format 'other 3', expected"),
        (lambda checkpoint: (checkpoint / "manifest.json").write_text("{"), "is not JSON"),
        (lambda checkpoint: (checkpoint / "manifest.json").write_text("[1]"), "has format None"),
        (lambda checkpoint: (checkpoint / "manifest.json").write_bytes(b"\xff"), "is not JSON"),
        (lambda checkpoint: (checkpoint / "manifest.json").unlink(), "is no checkpoint"),
    ],
)
def test_broken_checkpoints(checkpoint, harm, words):
    assert is_checkpoint(checkpoint)
    harm(checkpoint)
    with pytest.raises(ConversionError, match=words) as caught:
        load_checkpoint(checkpoint)
    one_sentence(caught)
    refused(checkpoint)


@pytest.mark.parametrize(
    "files, words", [("manifest.ocdbt", "orbax finds no weights"), ("*/d/*", "its weights are not those")]
)
def test_damaged_bytes(tmp_path, files, words):
    # One leaf only: while one read fails, orbax lets the others run on, and they warn whenever they end.
    save_checkpoint(tmp_path / "a", {"params": {"a": {"bias": rng.random(10000, np.float32)}}}, {}, {})
    path = max((tmp_path / "a" / "weights").glob(files), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=words) as caught:
        load_checkpoint(tmp_path / "a")
    one_sentence(caught)


def test_is_checkpoint(checkpoint, tmp_path):
    assert is_checkpoint(str(checkpoint))
    assert not is_checkpoint(tmp_path) and not is_checkpoint(tmp_path / "none") and not is_checkpoint("a" * 5000)


def test_what_torchvisions_weights_were_trained_to_see():
    torchvision()
    assert read_preprocessing("lpips", "alexnet") == {}
    usual = read_preprocessing("torchvision", "alexnet")
    assert (usual["input_size"], usual["resize_size"], usual["mean"]) == (224, 256, (0.485, 0.456, 0.406))
    assert usual["interpolation"] == "bilinear"
    assert read_preprocessing("torchvision", "efficientnet_b0")["interpolation"] == "bicubic"
    odd = read_preprocessing("torchvision:IMAGENET1K_FEATURES", "vgg16")
    assert odd["std"] == pytest.approx((1 / 255,) * 3)
    with pytest.raises(ConversionError, match="has no weights 'V9'"):
        read_preprocessing("torchvision:V9", "alexnet")
