"""`load` for families with something of their own: auxiliary heads, a transformed input, old names, other images."""

import functools
import importlib

import jax
import numpy as np
import pytest
import torch

import jaxcircuits as jc
from jaxcircuits.cli.recorded import network_of
from jaxcircuits.jobs import plan
from jaxcircuits.loading import checkpoint_manifest, describe_architecture
from jaxcircuits.models import ARCHITECTURES, ELSEWHERE, RENAMED, SEEN, densenet, googlenet, inception
from jaxcircuits.options import Options
from tests.test_models import random_weights
from tests.torchvision_oracle import torchvision
from weights_conversion import save_checkpoint, to_flax, to_torch, write_state


@functools.cache
def shapes(name, **options):
    return jax.eval_shape(ARCHITECTURES[name](**options).init, jax.random.key(0), np.zeros((1, 224, 224, 3)))


def zeros(name, **options):
    """A state dict: nothing here depends on the numbers."""
    return to_torch(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes(name, **options)))


def without_heads():
    """GoogLeNet's weights as people save them."""
    return {key: value for key, value in zeros("googlenet").items() if not key.startswith("aux")}


def test_auxiliary_heads_may_be_missing_and_nothing_else(tmp_path):
    state = without_heads()
    write_state(tmp_path / "a.safetensors", state)
    model = jc.load("googlenet", weights=tmp_path / "a.safetensors")
    assert {key.partition(".")[0] for key in model.missing} == {"aux1", "aux2"}
    assert "aux2.fc2.weight" in model.missing and "aux1.conv.bn.running_var" in model.missing
    assert not any(name.startswith("aux") for name in model.layers)
    assert model.state_dict().keys() == state.keys()
    assert jax.eval_shape(model, np.zeros((1, 64, 64, 3), np.float32)).shape == (1, 1000)

    del state["conv2.conv.weight"]
    write_state(tmp_path / "b.safetensors", state)
    with pytest.raises(jc.InputError, match=r"missing: conv2\.conv\.weight$"):
        jc.load("googlenet", weights=tmp_path / "b.safetensors")


@pytest.mark.slow
def test_auxiliary_heads_of_another_number_of_classes(tmp_path):
    """As after the classifier alone was exchanged."""
    state = jc.load("googlenet", weights="random").state_dict()
    state |= {"fc.weight": state["fc.weight"][:10], "fc.bias": state["fc.bias"][:10]}
    torch.save({name: torch.tensor(value) for name, value in state.items()}, tmp_path / "ten.pth")
    model = jc.load("googlenet", weights=tmp_path / "ten.pth")
    assert model.layers["fc"].outputs == 10 and "aux1.fc2.weight" in model.missing
    np.testing.assert_array_equal(model.state_dict()["fc.weight"], state["fc.weight"])


def test_what_torchvision_resizes_to_is_known_of_files():
    """For each architecture as for one of torchvision's own weights."""
    models = torchvision().models
    for name in ARCHITECTURES:
        if name in ELSEWHERE:
            continue
        own = {"input_size": 224, "resize_size": 256, "interpolation": "bilinear"} | SEEN.get(name, {})
        given = [weights.transforms() for weights in models.get_model_weights(name)]
        seen = [(t.crop_size[0], t.resize_size[0], t.interpolation.value) for t in given]
        assert (own["input_size"], own["resize_size"], own["interpolation"]) in seen, name


def test_the_last_layers_may_be_missing(tmp_path):
    state = zeros("squeezenet1_1")
    short = {key: value for key, value in state.items() if not key.startswith("classifier")}
    write_state(tmp_path / "short.pth", short)
    model = jc.load("squeezenet1_1", weights=tmp_path / "short.pth")
    assert set(model.missing) == {"classifier.1.weight", "classifier.1.bias"}
    model.check_weights(["features.12.squeeze"])
    with pytest.raises(jc.InputError, match=r"weights of squeezenet1_1 hold nothing for 'classifier\.1'"):
        model.check_weights(["classifier.1"])
    for lacking in ("features.12.expand1x1.weight", "classifier.1.bias"):  # amid others, or half of a layer
        write_state(tmp_path / "b.pth", {key: value for key, value in state.items() if key != lacking})
        with pytest.raises(jc.InputError, match=f"missing: {lacking}"):
            jc.load("squeezenet1_1", weights=tmp_path / "b.pth")


def test_where_the_input_is_transformed(tmp_path, monkeypatch):
    def transforms(**options):
        return jc.load("googlenet", **options).module.transform_input

    state = without_heads()
    write_state(tmp_path / "a.safetensors", state)
    assert transforms(weights=tmp_path / "a.safetensors") is False
    assert transforms(weights=tmp_path / "a.safetensors", transform_input=True) is True

    monkeypatch.setattr("jaxcircuits.loading.read_state", lambda source, architecture: state)
    monkeypatch.setattr("jaxcircuits.loading.read_preprocessing", lambda source, architecture: {})
    assert transforms(weights="torchvision:IMAGENET1K_V1", transform_input=False) is False
    model = jc.load("googlenet", weights="torchvision")
    assert model.module.transform_input is True
    save_checkpoint(tmp_path / "a", model.variables, model.extras, checkpoint_manifest(model))
    again = jc.load("googlenet", weights=tmp_path / "a")
    assert again.module.transform_input is True and again.missing == model.missing
    # a circuit remembers it
    images = np.zeros((1, 64, 64, 3), np.float32)
    for transform in (True, False):
        model = jc.load("googlenet", weights=tmp_path / "a.safetensors", transform_input=transform)
        manifest = plan(model, images, jc.Features("conv1.conv", [0]), Options())[0].manifests[0][0]
        assert network_of(jc.Circuit({}, manifest), None, jc.load).transform_input is transform
    with pytest.raises(jc.InputError, match=r"cannot transform its input; only googlenet, inception_v3 can$"):
        jc.load("alexnet", transform_input=True)


@pytest.mark.parametrize("name, family, width", [("googlenet", googlenet, 512), ("inception_v3", inception, 768)])
def test_auxiliary_heads_are_torchvisions(name, family, width):
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((2, 17, 17, width), np.float32)
    torchvision()
    theirs = importlib.import_module(f"torchvision.models.{family.__name__.rpartition('.')[2]}")
    oracle = theirs.InceptionAux(width, 7).eval()
    state = random_weights({key: tuple(value.shape) for key, value in oracle.state_dict().items()}, rng)
    oracle.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    head = family.AuxiliaryHead(7)
    variables = to_flax(state, jax.eval_shape(lambda: head.init(jax.random.key(0), maps, False))).variables
    with torch.no_grad():
        expected = oracle(torch.from_numpy(maps.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(
        jax.jit(head.apply, static_argnums=2)(variables, maps, False), expected, 0, 1e-5 * np.abs(expected).max()
    )

    def train(variables, images):
        rngs = {"dropout": jax.random.key(0)}
        return ARCHITECTURES[name]().apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])

    outputs, _ = jax.eval_shape(train, shapes(name), np.zeros((2, 299, 299, 3), np.float32))
    expected = theirs.GoogLeNetOutputs if name == "googlenet" else theirs.InceptionOutputs
    assert outputs._fields == expected._fields and {y.shape for y in outputs} == {(2, 1000)}


def test_old_names_of_densenet(tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "small", functools.partial(densenet.DenseNet, 8, 4, (2, 1)))
    monkeypatch.setitem(RENAMED, "small", densenet.RENAMED)
    state = zeros("small")
    old = {key: value for key, value in state.items() if "denselayer" not in key}
    for key in state.keys() - old.keys():
        layer, place, leaf = key.rsplit(".", 2)
        old[f"{layer}.{place[:-1]}.{place[-1]}.{leaf}"] = state[key]
    assert "features.denseblock1.denselayer2.norm.1.weight" in old and "features.transition1.conv.weight" in old
    write_state(tmp_path / "a.safetensors", old)
    assert jc.load("small", weights=tmp_path / "a.safetensors").state_dict().keys() == state.keys()


@pytest.mark.parametrize("seed", [-1, 1.5])
def test_seeds_are_whole_numbers(seed):
    with pytest.raises(jc.InputError, match="expected a whole number"):
        jc.load("alexnet", weights="random", seed=seed)


def test_the_end_of_a_network_has_other_modules_too(tmp_path):
    short = {key: value for key, value in zeros("convnext_tiny").items() if not key.startswith("classifier")}
    write_state(tmp_path / "short.pth", short)
    missing = jc.load("convnext_tiny", weights=tmp_path / "short.pth").missing
    assert set(missing) == {f"classifier.{n}.{name}" for n in (0, 2) for name in ("weight", "bias")}


def test_the_head_of_squeezenet_is_a_convolution(tmp_path):
    torchvision()  # in its own way
    write_state(tmp_path / "a.safetensors", zeros("squeezenet1_1", num_classes=4))
    model = jc.load("squeezenet1_1", weights=tmp_path / "a.safetensors")
    assert model.layers["classifier.1"].outputs == checkpoint_manifest(model)["num_classes"] == 4
    assert jc.pytorch.torchvision_network(model).get_submodule("classifier.1").weight.shape == (4, 512, 1, 1)


def test_what_images_look_like(tmp_path):
    layers = describe_architecture("inception_v3")[0].layers
    assert layers["Conv2d_1a_3x3.conv"].input_shape == (299, 299, 3)
    assert layers["Mixed_7c.branch1x1.conv"].positions == (8, 8)

    write_state(tmp_path / "a.safetensors", zeros("inception_v1"))
    model = jc.load("inception_v1", weights=tmp_path / "a.safetensors")
    assert model.input_size == 224 and next(iter(model.layers)) == "conv2d0_pre_relu_conv"
    pixels = np.arange(256)  # Lucent's range of them
    np.testing.assert_allclose((pixels / 255 - model.mean[0]) / model.std[0], pixels - 117, atol=1e-4)
