"""Export: PyTorch computes in the exported circuit what jaxcircuits computes in its own."""

import functools
import itertools
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import jaxcircuits as jc
from jaxcircuits.export import ENDINGS, USAGE, export_circuit, torch_masks, torch_weights
from jaxcircuits.gradients import activations
from jaxcircuits.variables import with_masks
from tests import twins
from tests.torchvision_oracle import torchvision

IMAGES = np.random.default_rng(0).standard_normal((2, 224, 224, 3), np.float32)


@functools.cache
def of_weights(weights):
    return jc.load("alexnet", weights=weights)


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
        pytest.param(
            "random:3",
            "classifier.4",
            ["features.0", "features.8", "classifier.1", "classifier.4"],
            marks=pytest.mark.full,
        ),
    ],
)
def test_activations(weights, layer, layers, tmp_path):
    model = of_weights(weights)
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
    state = torch_weights(of_weights("lpips"), circuit(of_weights("lpips"), "features.3", 5))
    assert {name.partition(".")[0] for name in state} == {"features"}


def test_files(tmp_path):
    model = of_weights("lpips")
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
    model = of_weights("lpips")
    made = circuit(model, "features.3", 5)
    written = []

    def full(path, mode="r", **options):
        if mode == "xb":
            if written:
                raise OSError(28, "No space left on device")
            written.append(path)
        return original(path, mode, **options)

    original = type(tmp_path).open
    monkeypatch.setattr("pathlib.Path.open", full)
    with pytest.raises(jc.InputError, match="No space left on device"):
        export_circuit(model, made, tmp_path / "b" / "c" / "a")
    assert written and not os.listdir(tmp_path)


def test_of_another_network(tmp_path):
    model = of_weights("lpips")
    made = circuit(model, "features.3", 5)
    for name, shape, why in (
        ("features.3", (64, 191), r"\(64, 191\); this model has \(64, 192\)"),
        ("conv1", (3, 64), "no layer"),
    ):
        wrong = jc.Circuit(made.masks | {name: np.ones(shape, bool)}, made.manifest)
        for use in (lambda c: torch_masks(model, c), lambda c: export_circuit(model, c, tmp_path / "a")):
            with pytest.raises(jc.InputError, match=why):
                use(wrong)
    channel = made.manifest["feature"] | {"channel": 9999}
    with pytest.raises(jc.InputError, match="has no channel 9999"):
        export_circuit(model, jc.Circuit(made.masks, made.manifest | {"feature": channel}), tmp_path / "a")
    (tmp_path / "file").touch()
    with pytest.raises(jc.InputError, match="is a file"):
        export_circuit(model, made, tmp_path / "file" / "a")
    assert os.listdir(tmp_path) == ["file"]


def with_means(model, images, layer, layers, keep):
    """A random circuit of channel 5, with mean ablation, and its map by jaxcircuits: (N, H, W)."""
    made = circuit(model, layer, 5, keep=keep, layers=layers)
    masks = {name: mask[None] for name, mask in made.masks.items()}
    offsets = {name: a[0] for name, a in jc.mean_offsets(model, images, masks).items()}
    made = jc.Circuit(made.masks, {**made.manifest, "ablation": "mean"}, offsets=offsets)
    network = model.network(images.shape[1:])

    @jax.jit
    def run(images):
        masked = with_masks(network, model.variables, made.masks)
        probes = {name: p + offsets[name] for name, p in network.probes(layers, len(images)).items()}
        x = network.run(masked, images, probes)[layer]
        direction = jnp.eye(network.layers[layer].outputs)[5:6]
        return activations(network.layers[layer], masked, x, direction)[0]

    with jax.default_matmul_precision("highest"):
        return made, np.asarray(run(images) + offsets[layer][5])


@pytest.mark.parametrize(("name", "layer"), [("alexnet", "features.10"), ("resnet18", "layer2.0.downsample.0")])
def test_means_of_removed_kernels(name, layer, tmp_path):
    """Folded into the biases, or into BatchNorm; PyTorch's network then computes the circuit's map."""
    model = of_weights("lpips") if name == "alexnet" else jc.load(name, weights="random:3")
    images = jc.read_images("photos", model, limit=2)
    images = np.concatenate(list(images))[:, 64:160, 64:160]
    layers = (*itertools.takewhile(lambda n: n != layer, model.layers), layer)
    made, expected = with_means(model, images, layer, layers, 0.5)
    assert all(np.abs(offset).max() > 1e-3 for offset in made.offsets.values())
    caught, network = [], torchvision().models.get_model(name, weights=None).eval()
    state = export_circuit(model, made, tmp_path / "a")[2]
    network.load_state_dict(torch.load(state), strict=False)
    network.get_submodule(layer).register_forward_hook(lambda *args: caught.append(args[-1].clone()))
    with torch.no_grad():
        network(torch.from_numpy(images).permute(0, 3, 1, 2))
    found = caught[0][:, 5].numpy()
    if name == "resnet18":  # its own layer's offset is taken off behind it
        norm = network.get_submodule("layer2.0.downsample.1")
        full = model.variables["batch_stats"]["layer2.0"]["downsample"]["1"]["mean"][5]
        np.testing.assert_allclose(full - norm.running_mean[5].numpy(), made.offsets[layer][5], rtol=1e-4)
        found = found + made.offsets[layer][5]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    masks_alone = jc.Circuit(made.masks, circuit(model, layer, 5).manifest)
    state = {key: torch.from_numpy(value.copy()) for key, value in torch_weights(model, masks_alone).items()}
    network.load_state_dict(state, strict=False)
    with torch.no_grad():
        network(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert np.abs(caught[1][:, 5].numpy() - expected).max() > 0.01 * np.abs(expected).max(), "offsets change something"


class Scaled(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Conv(2, (1, 1), name="conv")(x) * self.param("strength", nn.initializers.ones, (1,))


def test_a_variable_that_pytorch_has_no_name_for(tmp_path):
    model = jc.Model(Scaled(), Scaled().init(jax.random.key(0), np.zeros((1, 4, 4, 3))), input_size=4)
    (found,) = jc.extract(model, np.ones((2, 4, 4, 3), np.float32).cumsum(0), jc.Features("conv", [0]), keep=0.5)
    with pytest.raises(jc.InputError, match="strength"):
        jc.export_circuit(model, found, tmp_path / "a")
    assert not list(tmp_path.iterdir())


class Branches(nn.Module):
    """Convolutions without a bias, the first of which no BatchNorm follows, the second of which another branch uses."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (1, 1), use_bias=False, name="bare")(x))
        y = nn.Conv(4, (1, 1), use_bias=False, name="shared")(x)
        z = nn.Conv(6, (1, 1), use_bias=False, name="normed")(y + nn.BatchNorm(True, name="bn")(y))
        return nn.Conv(6, (1, 1), name="last")(nn.BatchNorm(True, name="bn2")(z))


def test_means_without_a_place():
    model = jc.Model(Branches(), twins.random_variables(Branches(), (1, 4, 4, 3)), input_size=4)
    rng = np.random.default_rng(0)
    for layers, place in ((("bare", "last"), None), (("shared",), None), (("normed", "last"), "bn2")):
        made = circuit(model, layers[-1], 3, layers=layers)
        offsets = {n: rng.standard_normal(model.layers[n].outputs).astype(np.float32) for n in layers}
        made = jc.Circuit(made.masks, {**made.manifest, "ablation": "mean"}, offsets=offsets)
        if place is None:
            with pytest.raises(jc.InputError, match=f"cannot be exported: layer {layers[0]!r} has neither a bias nor"):
                torch_weights(model, made)
            continue
        state = torch_weights(model, made)
        old = model.state_dict()
        np.testing.assert_allclose(state["bn2.running_mean"], old["bn2.running_mean"] - offsets["normed"], rtol=1e-6)
        np.testing.assert_allclose(state["last.bias"], old["last.bias"] + offsets["last"], rtol=1e-6)
    with pytest.raises(jc.InputError, match="the offsets of 'last' have shape"):
        torch_weights(model, jc.Circuit(made.masks, made.manifest, offsets={"last": np.zeros(5, np.float32)}))
