"""Export: PyTorch computes in the exported circuit what jaxcircuits computes in its own."""

import os

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import jaxcircuits as jc
from jaxcircuits.export import ENDINGS, USAGE, export_circuit, torch_masks, torch_weights
from tests.torchvision_oracle import torchvision

IMAGES = np.random.default_rng(0).standard_normal((2, 224, 224, 3), np.float32)
MODELS = {weights: jc.load("alexnet", weights=weights) for weights in ("lpips", "random:3")}


def circuit(model, layer, channel, keep=0.3, layers=None):
    """A random circuit of one channel; its r with the full network does not matter here."""
    rng, known = np.random.default_rng(1), model.layers
    names = layers or [name for name in known if name.startswith("features")][: 2 if layer == "features.3" else None]
    masks = {name: rng.random((known[name].inputs, known[name].outputs)) < keep for name in names}
    where = {"layer": layer, "channel": channel, "position": None}
    return jc.Circuit(masks, {"feature": where, "objective": "abs", "criterion": "random", "keep": keep})


def flax_activation(model, made):
    """The layer's maps in the circuit, by plain Flax: the module run on masked weights, its layer's output caught."""
    params = {name: dict(leaves) for name, leaves in model.variables["params"].items()}
    for name, mask in made.masks.items():
        params[name]["kernel"] = params[name]["kernel"] * mask
    feature = made.manifest["feature"]
    _, state = model.module.apply(
        {"params": params},
        IMAGES,
        capture_intermediates=lambda m, _: m.name == feature["layer"],
        mutable="intermediates",
    )
    (output,) = state["intermediates"][feature["layer"]]["__call__"]
    return np.asarray(output)


def torch_activation(network, made):
    caught, feature = [], made.manifest["feature"]
    handle = network.get_submodule(feature["layer"]).register_forward_hook(
        lambda *args: caught.append(args[-1].clone())
    )  # the ReLU after it writes in place
    with torch.no_grad():
        network.eval()(torch.from_numpy(IMAGES).permute(0, 3, 1, 2))
    handle.remove()
    return caught[0][:, feature["channel"]].numpy()


def alexnet(model):
    """torchvision's own, with the full network's weights; what the source lacks stays as torchvision draws it."""
    network = torchvision().models.alexnet(weights=None)
    network.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in model.state_dict().items()}, strict=False)
    return network


@pytest.mark.parametrize(
    ("weights", "layer", "layers"),
    [
        ("lpips", "features.3", None),
        ("random:3", "features.10", None),
        ("random:3", "classifier.4", ["features.0", "features.8", "classifier.1", "classifier.4"]),
    ],
)
def test_activations(weights, layer, layers, tmp_path):
    model = MODELS[weights]
    made = circuit(model, layer, 5, layers=layers)
    masks, safe, state = export_circuit(model, made, tmp_path / "new" / "a'b")
    layer_maps = flax_activation(model, made)
    expected, scale = layer_maps[..., 5], np.abs(layer_maps).max()
    pruned, loaded = alexnet(model), torchvision().models.alexnet(weights=None)
    full = torch_activation(pruned, made)
    for_masks, for_weights = USAGE.format(masks=str(masks), weights=str(state)).split("# or")
    exec(for_masks, {"model": pruned})
    exec("import torch\n#" + for_weights, {"model": loaded})
    assert np.abs(torch_activation(pruned, made) - expected).max() < 1e-5 * scale
    assert np.abs(torch_activation(loaded, made) - expected).max() < 1e-5 * scale
    assert np.abs(full - expected).max() > 0.01 * scale, "the masks change something"
    for name, mask in load_file(safe).items():
        np.testing.assert_array_equal(mask, torch.load(masks)[name].numpy())
        kept = made.masks[name.removesuffix(".weight_mask")].T
        np.testing.assert_array_equal(mask.reshape(kept.shape), kept)


def test_what_is_missing_is_left_out():
    state = torch_weights(MODELS["lpips"], circuit(MODELS["lpips"], "features.3", 5))
    assert {name.partition(".")[0] for name in state} == {"features"}


def test_files(tmp_path):
    model = MODELS["lpips"]
    made = circuit(model, "features.3", 5)
    paths = export_circuit(model, made, tmp_path / "a")
    assert [path.name for path in paths] == ["a" + ending for ending in ENDINGS] == sorted(os.listdir(tmp_path))
    paths[0].unlink()
    with pytest.raises(jc.InputError, match="exists; --force"):
        export_circuit(model, made, tmp_path / "a")
    assert not paths[0].exists()
    export_circuit(model, made, tmp_path / "a", force=True)
    assert len(os.listdir(tmp_path)) == 3


def test_three_files_or_none(tmp_path, monkeypatch):
    model = MODELS["lpips"]
    made = circuit(model, "features.3", 5)
    written = []

    def full(path, content):
        if written:
            raise OSError(28, "No space left on device")
        written.append(path)
        return original(path, content)

    original = type(tmp_path).write_bytes
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(jc.InputError, match="No space left on device"):
        export_circuit(model, made, tmp_path / "b" / "c" / "a")
    assert written and not os.listdir(tmp_path)


def test_of_another_network(tmp_path):
    model = MODELS["lpips"]
    made = circuit(model, "features.3", 5)
    for name, shape, why in (
        ("features.3", (64, 191), r"\(64, 191\); this model has \(64, 192\)"),
        ("conv1", (3, 64), "no layer"),
    ):
        wrong = jc.Circuit(made.masks | {name: np.ones(shape, bool)}, made.manifest)
        for use in (lambda c: torch_masks(model, c), lambda c: export_circuit(model, c, tmp_path / "a")):
            with pytest.raises(jc.InputError, match=why):
                use(wrong)
    (tmp_path / "file").touch()
    with pytest.raises(jc.InputError, match="is a file"):
        export_circuit(model, made, tmp_path / "file" / "a")
    assert os.listdir(tmp_path) == ["file"]
