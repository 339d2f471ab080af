"""Circuits in PyTorch networks, compact ones in files, and what other programs saved as circuits of ours."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.nn.utils import prune as torch_prune

import jaxcircuits as jc
from jaxcircuits.cli import main
from jaxcircuits.pytorch.files import to_onnx
from tests import twins
from tests.test_compact import check, circuit, expected, nchw
from tests.torchvision_oracle import torchvision


def output(network, images, layer, channel):
    caught = []
    handle = network.get_submodule(layer).register_forward_hook(lambda *args: caught.append(args[-1].clone()))
    with torch.no_grad():
        network(nchw(images))
    handle.remove()
    y = caught[0]
    return y.reshape(*y.shape[:2], *(y.shape[2:] or (1, 1)))[:, channel].numpy()


@pytest.mark.parametrize("offsets", [False, True])
def test_masked_for_a_while(small, offsets):
    made = circuit(small.model, "features.3", 1, offsets=offsets)
    before = {key: value.clone() for key, value in small.torch.state_dict().items()}
    full = output(small.torch, small.images, "features.3", 1)
    with jc.pytorch.masked(small.torch, made):
        found = output(small.torch, small.images, "features.3", 1)
        loss = small.torch(nchw(small.images)).sum()
        (gradient,) = torch.autograd.grad(loss, small.torch.features[0].parametrizations.weight.original)
    check(found, expected(small.torch, made, small.images))
    assert np.abs(found - full).max() > 0.01 * np.abs(full).max()
    dropped = ~made.masks["features.0"].T
    assert dropped.any() and not gradient.numpy()[dropped].any() and gradient.abs().max() > 0
    after = small.torch.state_dict()
    assert set(after) == set(before) and all(torch.equal(after[key], before[key]) for key in before)
    np.testing.assert_array_equal(output(small.torch, small.images, "features.3", 1), full)
    handle = jc.pytorch.masked(small.torch, made)
    with pytest.raises(jc.InputError, match=r"'features\.0' in the PyTorch network is pruned, masked or"):
        jc.pytorch.masked(small.torch, made)
    handle.remove()
    handle.remove()
    assert set(small.torch.state_dict()) == set(before)


def test_pruned(small):
    made = circuit(small.model, "layer1.conv2", 3, offsets=True)
    network = twins.TorchSmall().eval()
    network.load_state_dict(small.torch.state_dict())
    handles = jc.pytorch.prune(network, made)
    wanted = expected(small.torch, made, small.images)
    check(output(network, small.images, "layer1.conv2", 3), wanted)
    assert len(handles) == len(made.masks)
    for name in made.masks:
        torch_prune.remove(network.get_submodule(name), "weight")
    check(output(network, small.images, "layer1.conv2", 3), wanted)


def test_masked_networks_are_not_pruned(small):
    made = circuit(small.model, "layer1.conv2", 3)
    before = {name: value.clone() for name, value in small.torch.state_dict().items()}
    with jc.pytorch.masked(small.torch, made), pytest.raises(jc.InputError, match="masked or parametrised already"):
        jc.pytorch.prune(small.torch, made)
    assert all(torch.equal(value, before[name]) for name, value in small.torch.state_dict().items())


def test_another_network(small):
    made = circuit(small.model, "features.3", 1)
    for network, why in (
        (torch.nn.Sequential(torch.nn.Linear(2, 2)), "has no layer 'features.0'; the nearest are '0'"),
        (torchvision().models.alexnet(weights=None), r"outputs by inputs; the PyTorch network's layer is \(64, 3\)"),
    ):
        for put in (jc.pytorch.masked, jc.pytorch.prune):
            with pytest.raises(jc.InputError, match=why):
                put(network, made)
        assert not any("weight_" in key or "original" in key for key in network.state_dict())


def saved(path, content):
    torch.save(content, path)
    return path


def test_masks_of_other_programs(small, tmp_path):
    """Dictionaries and lists, (O, I) and (O, I, 1, 1), bool and float: one circuit, of what leads to the feature."""
    made = circuit(small.model, "features.3", 1, seed=2, dead=0.2)
    masks = {name: torch.from_numpy(mask.T.copy()) for name, mask in made.masks.items()}
    relevant = jc.relevant_kernels(small.model, jc.Features("features.3", [1]))
    shaped = {name: mask.float()[:, :, None, None] for name, mask in masks.items()}
    for k, content in enumerate(
        (
            masks,
            {"unit": 1, "masks": shaped},
            list(shaped.values()),
            {f"{name}.weight_mask": mask for name, mask in masks.items()} | {"fc1": torch.ones(7, 6)},
        )
    ):
        found = jc.pytorch.read_masks(saved(tmp_path / f"{k}.pt", content), small.model, "features.3:1")
        assert list(found.masks) == list(made.masks)
        for name, mask in made.masks.items():
            np.testing.assert_array_equal(found.masks[name], mask & np.asarray(relevant[name][0]))
    found = jc.pytorch.read_masks(
        saved(tmp_path / "a.pt", masks), small.model, jc.Features("features.3", [1]), images=small.images,
        criterion="theirs",
    )  # fmt: skip
    given = {name: mask[None] for name, mask in made.masks.items()}
    r = jc.correlation(small.model, small.images, jc.Features("features.3", [1]), given)
    assert found.manifest["correlation"] == pytest.approx(r[0], abs=1e-6)
    assert found.stem == f"features.3_1.theirs.kernels{found.manifest['kept']}"
    found.save(tmp_path / "b.safetensors")
    again = jc.Circuit.load(tmp_path / "b.safetensors")
    assert again.manifest["kept"] == sum(mask.sum() for mask in again.masks.values())


def test_scores_of_other_programs(small, tmp_path):
    features = jc.Features("features.3", [1])
    scores = jc.score(small.model, small.images, features)
    content = {name: torch.from_numpy(np.array(scores.values[name][0].T)) for name in scores.layers}
    found = jc.pytorch.read_scores(saved(tmp_path / "a.pt", content), small.model, features, criterion="theirs")
    assert found.layers == scores.layers
    for name in scores.layers:
        np.testing.assert_array_equal(found.values[name], scores.values[name])
        np.testing.assert_array_equal(found.relevant[name], scores.relevant[name])
    mine, theirs = (jc.top_kernels(s, keep=0.3) for s in (scores, found))
    made, _ = jc.pytorch.circuits_of_scores(small.model, features, found, [{"keep": 0.3}, {"kernels": 9}])
    for name, mask in mine.items():
        np.testing.assert_array_equal(theirs[name], mask)
        np.testing.assert_array_equal(made.masks[name], np.asarray(mask[0]))
    assert made.stem == "features.3_1.theirs.keep0.3" and _.manifest["kept"] == 9


class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_files_that_are_none(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shape = small.model.layers["features.0"].outputs, small.model.layers["features.0"].inputs
    good = torch.ones(shape)
    for content, why in (
        (Code(), "is broken, or no PyTorch file of weights only"),
        ({"features.0": Code()}, "is broken, or no PyTorch file of weights only"),
        ({"features.0": "x"}, "is of type str; expected"),
        ({"features.0": torch.ones(3, 8)}, r"is of shape \(3, 8\); expected \(8, 3\), outputs by inputs"),
        ({"features.0": torch.ones(1).expand(2**30, 2**30)}, "is of shape"),
        ({"features.0": good / 0}, "is not finite everywhere"),
        ({"features.0": good.to_sparse()}, "is no plain array"),
        ({"features.0": good * 2}, "holds other numbers than 0 and 1"),
        ({"features.0": good * 0}, "none of the kernels that are kept leads to features.3:1"),
        ({"conv": good}, "there is no layer 'conv'"),
        ({}, "expected tensors by module name"),
        (good, "holds a Tensor; expected tensors by module name"),
        ([good] * 9, "lists 9 arrays; small has"),
        ({"masks": {"features.0": good}, "scores": {"features.0": good}}, "holds masks and scores; expected one"),
        ({"features.0": good, "features.0.weight": good}, "holds two arrays for 'features.0'"),
    ):
        with pytest.raises(jc.InputError, match=why):
            jc.pytorch.read_masks(saved("a.pt", content), small.model, "features.3:1")
    with pytest.raises(jc.InputError, match=r"cannot read .*No such file"):
        jc.pytorch.read_masks("b.pt", small.model, "features.3:1")
    os.mkfifo("c.pt")
    with pytest.raises(jc.InputError, match="no regular file"):  # and does not wait for one who writes into it
        jc.pytorch.read_masks("c.pt", small.model, "features.3:1")
    os.remove("c.pt")
    with pytest.raises(jc.InputError, match="of one feature"):
        jc.pytorch.read_masks("a.pt", small.model, "features.3:0-1")
    assert os.listdir(tmp_path) == ["a.pt"]


def test_onnx(small):
    import onnxruntime

    made = circuit(small.model, "layer1.conv2", 3, offsets=True)
    compact = jc.pytorch.compact(small.model, made, network=small.torch)
    session = onnxruntime.InferenceSession(to_onnx(compact, (3, 13, 11)), providers=["CPUExecutionProvider"])
    for images in (small.images, small.images[:1]):
        (found,) = session.run(None, {"images": nchw(images).numpy()})
        check(found, expected(small.torch, made, images))


@pytest.mark.slow
def test_on_the_command_line(alexnet, networks_once, tmp_path, monkeypatch):
    """A file of scores in, a circuit out; the circuit in, its compact network out; both compute the feature."""
    networks_once(monkeypatch)
    import onnxruntime

    torchvision()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    images = (np.random.default_rng(0).random((2, 224, 224, 3)) * 255).astype(np.uint8)
    np.save("images.npy", images)
    rng = np.random.default_rng(1)
    layers = {name: alexnet.layers[name] for name in ("features.0", "features.3", "features.6")}
    scores = {name: torch.from_numpy(rng.random((la.outputs, la.inputs)) ** 20) for name, la in layers.items()}
    torch.save(scores, "scores.pt")
    run = lambda *args: CliRunner().invoke(main, [*args])  # noqa: E731
    asked = "import", "scores.pt", "alexnet", "features.6:56", "--images", "images.npy"
    found = run(*asked)
    assert found.exit_code == 2 and found.stderr.splitlines()[-1].endswith("scores: give --keep or --kernels")
    found = run(*asked, "--keep", "0.02", "--criterion", "theirs", "--json")
    (row,) = json.loads(found.stdout)["circuits"]
    assert row["circuit"] == "circuits/alexnet/features.6_56.theirs.keep0.02.safetensors"
    assert row["kept"] == round(0.02 * row["relevant"]) and np.isfinite(row["correlation"])
    found = run("export", row["circuit"], "--compact", "--onnx")
    assert found.exit_code == 0, found.output
    program, onnx = (f"circuits/features.6_56.theirs.keep0.02.compact.{ending}" for ending in ("pt2", "onnx"))
    assert found.stdout.splitlines()[:2] == [program, onnx]
    network = torchvision().models.alexnet(weights=None).eval()
    state = {key: torch.from_numpy(value.copy()) for key, value in alexnet.state_dict().items()}
    network.load_state_dict(state, strict=False)
    pictures = np.concatenate(list(jc.read_images("images.npy", alexnet)))
    wanted = expected(network, jc.Circuit.load(row["circuit"]), pictures)
    code = found.stdout.split("In PyTorch:")[1]
    space = {"images": nchw(pictures)}
    exec(code, space)
    assert check(space["feature"].detach(), wanted)
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    check(session.run(None, {"images": nchw(pictures).numpy()})[0], wanted)
    found = run("export", row["circuit"], "--onnx")
    assert found.exit_code == 2 and "exists; --force" in found.stderr


@pytest.mark.slow
def test_the_page_does_what_it_says(tmp_path, monkeypatch, capsys):
    """With a real circuit of the pretrained network, whose compact networks compute what torchvision's does in it."""
    torchvision()
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent / "docs" / "pytorch.md").read_text()
    space = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "pytorch.md", "exec"), space)
    outputs, judged = capsys.readouterr().out.splitlines()
    assert outputs.startswith("{'features.0': ") and outputs.endswith("'features.10': 1}")
    wanted = expected(space["network"], space["circuit"], space["pixels"])
    assert check(space["in_flax"], wanted) and check(space["in_torch"], wanted)
    small, whole = (
        {name: layer.outputs for name, layer in space[which].layers.items()} for which in ("small", "model")
    )
    assert list(small) == ["features.0", "features.3", "features.6", "features.8", "features.10"]
    assert all(small[name] < whole[name] for name in small)
    kept, effective, r = judged.split()
    assert int(kept) == space["circuit"].manifest["kept"] and int(effective) == space["circuit"].manifest["effective"]
    assert float(r) == pytest.approx(space["circuit"].manifest["correlation"], abs=1e-5)
