"""Compact circuits, in Flax and in PyTorch, against the whole network with its weights masked."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxcircuits as jc
from jaxcircuits.compact.module import convolution
from jaxcircuits.compact.plan import plan
from jaxcircuits.gradients import activations
from jaxcircuits.models import ARCHITECTURES, inception_v1
from jaxcircuits.variables import with_masks
from tests import twins
from tests.test_families import Blocks
from tests.test_models import random_oracle
from tests.torchvision_oracle import torchvision
from weights_conversion import to_flax


def circuit(model, layer, channel=0, *, seed=0, keep=0.6, dead=0.4, direction=None, offsets=False):
    """Random masks in which whole filters are missing, and a third of the inputs of the first layers."""
    rng, masks = np.random.default_rng(seed), {}
    names = list(model.layers)
    for name in names[: names.index(layer) + 1]:
        found = model.layers[name]
        mask = rng.random((found.inputs, found.outputs)) < keep
        mask[:, rng.random(found.outputs) < dead] = False
        if name == layer:
            mask[:, channel] = rng.random(found.inputs) < 0.7
            mask[0, channel] = True
        masks[name] = mask
    where = {"layer": layer, "position": None} | ({"channel": channel} if direction is None else {"name": "d"})
    added = {n: rng.standard_normal(m.shape[1]).astype(np.float32) for n, m in masks.items()} if offsets else None
    manifest = {"feature": where, "objective": "abs", "ablation": "mean" if offsets else "zero"}
    return jc.Circuit(masks, manifest, offsets=added, direction=direction)


def expected(network, made, images):
    """The feature's maps (N, H, W), by PyTorch on masked weights."""
    for part in network.modules():  # or the ReLU after the layer writes over what is looked at
        if hasattr(part, "inplace"):
            part.inplace = False
    masks = {name: mask.T for name, mask in made.masks.items()}
    y = twins.with_kernels(network, masks, made.offsets)(images)[made.manifest["feature"]["layer"]].numpy()
    y = y.reshape(*y.shape[:2], *(y.shape[2:] or (1, 1)))
    direction = made.direction
    if direction is None:
        direction = np.eye(y.shape[1])[made.manifest["feature"]["channel"]]
    return np.einsum("nohw,o->nhw", y, direction)


def check(found, wanted):
    found = np.asarray(found).reshape(wanted.shape)
    scale = np.abs(wanted).max()
    assert np.abs(found - wanted).max() <= 1e-5 * scale, np.abs(found - wanted).max() / scale
    return scale > 0 and wanted.std() > 1e-3 * scale


def nchw(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("layer", ["features.3", "layer1.conv2", "layer1.conv1", "fc2"])
def test_the_feature_is_the_same(small, layer, monkeypatch):
    """Strides, pools, groups, BatchNorm, a skip, dilation, dense layers; directions, offsets; other image sizes."""
    torchvision()
    lengths, moved = [], 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        outputs = small.model.layers[layer].outputs
        direction = (rng.standard_normal(outputs) * (np.arange(outputs) != 2)).astype(np.float32) if seed == 1 else None
        made = circuit(
            small.model, layer, seed % outputs, seed=seed, keep=(0.3, 0.6, 0.6, 0.2)[seed], direction=direction,
            offsets=seed == 2,
        )  # fmt: skip
        wanted = expected(small.torch, made, small.images)
        compact = jc.compact(small.model, made)
        moved += check(compact(small.images), wanted)
        assert list(compact.layers)[-1] == layer and compact.layers[layer].outputs == 1
        in_torch = jc.pytorch.compact(small.model, made, network=small.torch)
        with torch.no_grad():
            check(in_torch(nchw(small.images)), wanted)
        assert not any(name.startswith("fc") for name, _ in in_torch.named_modules() if layer != "fc2")
        lengths.append(sum(a.size for a in jax.tree.leaves(compact.variables)))
    whole = sum(a.size for a in jax.tree.leaves(small.model.variables))
    assert moved >= 2 and max(lengths) < whole and lengths[3] < lengths[1]


def test_what_may_go_and_what_must_stay(small):
    """By hand: layer features.0 of eight channels, features.3 of six."""
    model = small.model
    masks = {name: np.ones((la.inputs, la.outputs), bool) for name, la in model.layers.items() if name != "fc2"}
    first = masks["features.0"]
    first[:, [1, 2]] = False  # only their biases are left
    variables = jax.tree.map(np.array, model.variables)
    bias = variables["params"]["features.0"]["bias"]
    bias[1], bias[2] = -0.5, 0.5  # so one is zero after ReLU, the other is not
    model = jc.Model(model.module, variables, apply_options=model.apply_options, input_size=13)
    where = {"feature": {"layer": "layer1.conv1", "channel": 3, "position": None}, "objective": "abs"}
    found = plan(model, jc.Circuit({n: masks[n] for n in ("features.0", "layer1.conv1")}, where))
    # conv1 has two groups, so that channel 3 sees channels 0 to 3; it pads, so that a constant channel must stay
    assert found.slices["layer1.conv1"].reads.tolist() == [0, 2, 3]
    assert found.slices["features.0"].gives.tolist() == [0, 2, 3]
    assert not found.slices["features.0"].kernel[..., 1].any() and found.slices["features.0"].bias[1] == 0.5
    # fc1 does not pad: what a constant channel adds goes into its bias
    masks = {"features.3": np.ones((8, 6), bool), "fc1": np.ones((6, 7), bool)}
    masks["features.3"][:, 4] = False
    variables["params"]["features.3"]["bias"][4] = 0.75
    model = jc.Model(model.module, variables, apply_options=model.apply_options, input_size=13)
    where = {"feature": {"layer": "fc1", "channel": 3, "position": None}, "objective": "abs"}
    found = plan(model, jc.Circuit(masks, where))
    assert found.slices["fc1"].reads.tolist() == [0, 1, 2, 3, 5]
    added = 0.75 * variables["params"]["fc1"]["kernel"][4, 3]
    np.testing.assert_allclose(found.slices["fc1"].bias, variables["params"]["fc1"]["bias"][3] + added, rtol=1e-6)


def test_a_compact_model_is_a_model(small):
    """It can be scored: the scores are those of the circuit's kernels."""
    made = circuit(small.model, "features.3", 1, seed=1)
    compact = jc.compact(small.model, made)
    names = tuple(compact.layers)
    found = jc.score(compact, small.images, jc.Features("features.3"), layers=names)
    params = jax.tree.map(np.array, small.model.variables)
    for name, mask in made.masks.items():
        parent = params["params"]
        for part in small.model.layers[name].path:
            parent = parent[part]
        parent["kernel"] = parent["kernel"] * mask
    whole = jc.Model(small.model.module, params, apply_options=small.model.apply_options, input_size=13)
    wanted = jc.score(whole, small.images, jc.Features("features.3", [1]), layers=names)
    left = plan(small.model, made).slices
    for name in names:
        if left[name].groups == 1 and name != "features.3":
            values = np.asarray(wanted.values[name])[0][left[name].reads][:, left[name].gives]
            np.testing.assert_allclose(found.values[name][0], values, rtol=1e-4, atol=1e-6)


def test_errors(small):
    made = circuit(small.model, "features.3", 1)
    wrong = jc.Circuit(made.masks | {"features.0": np.ones((3, 7), bool)}, made.manifest)
    with pytest.raises(jc.InputError, match=r"the mask of 'features\.0' has shape"):
        jc.compact(small.model, wrong)
    with pytest.raises(jc.InputError, match="torchvision has no network 'small'"):
        jc.pytorch.compact(small.model, made)
    other = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    with pytest.raises(jc.InputError, match=r"Sequential has no layer 'features\.3'"):
        jc.pytorch.compact(small.model, made, network=other)

    class Untraceable(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(jc.InputError, match=r"torch\.fx cannot trace Untraceable"):
        jc.pytorch.compact(small.model, made, network=Untraceable())


def in_flax(model, made, images):
    """The feature's maps (N, H, W), by the whole network in Flax, with masked weights."""
    network = model.network(images.shape[1:])
    layer = network.layers[made.manifest["feature"]["layer"]]

    @jax.jit
    def run(images):
        masked = with_masks(network, model.variables, made.masks)
        return activations(layer, masked, network.run(masked, images)[layer.name], made.features.matrix(layer.outputs))

    with jax.default_matmul_precision("highest"):
        return np.asarray(run(images))[0]


class Jitted(nn.Module):
    """A block under nn.jit, twice; BatchNorm told by place, and one called twice; a layer that is none of ours."""

    @nn.compact
    def __call__(self, x, train=False):
        for name in ("one", "two"):
            x = PartUnderJit(name=name)(x, train)
        x = nn.ConvTranspose(4, (2, 2), strides=(2, 2), name="up")(x)
        twice = nn.BatchNorm(True, name="twice")
        return nn.Conv(3, (1, 1), name="last")(twice(nn.relu(twice(x))))


class Part(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3), padding=1, name="conv")(x)
        return nn.relu(nn.BatchNorm(name="norm")(x, not train))


PartUnderJit = nn.jit(Part, static_argnums=2)


def test_blocks_under_jit_and_other_modules():
    """Each of several compact networks has its own trace, and every block of it."""
    variables = twins.random_variables(Jitted(), (1, 6, 6, 4))
    model = jc.Model(Jitted(), variables, input_size=6, channels=4)
    images = np.random.default_rng(0).standard_normal((2, 6, 6, 4), np.float32)
    for channel in (0, 2):
        found = circuit(model, "last", channel, keep=1.0, dead=0.0)
        y = Jitted().apply(with_masks(model.network(), variables, found.masks), images)
        check(jc.compact(model, found)(images), np.asarray(y)[..., channel])


class Again(nn.Module):
    """One normalisation for two sets of channels, mirrored borders, and a sum with what is cut off at zero."""

    @nn.compact
    def __call__(self, x):
        norm = nn.BatchNorm(True, name="norm")
        x = nn.relu(norm(nn.Conv(6, (1, 1), name="a")(x)))
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        x = nn.relu(nn.Conv(6, (3, 3), padding="VALID", name="b")(x))
        return nn.Conv(3, (1, 1), name="last")(x + norm(nn.Conv(6, (1, 1), name="c")(x)))


class TorchAgain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(6)
        self.a, self.c = torch.nn.Conv2d(4, 6, 1), torch.nn.Conv2d(6, 6, 1)
        self.b = torch.nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect")
        self.last = torch.nn.Conv2d(6, 3, 1)

    def forward(self, x):
        x = self.b(torch.relu(self.norm(self.a(x))))
        torch.relu_(x)
        return self.last(x + self.norm(self.c(x)))


@pytest.mark.parametrize("seed", range(4))
def test_modules_that_run_again_and_tensors_that_change(seed):
    variables = twins.random_variables(Again(), (1, 6, 6, 4))
    model = jc.Model(Again(), variables, input_size=6, channels=4)
    network = TorchAgain().eval()
    jc.pytorch.networks.fill(network, model.variables)
    images = np.random.default_rng(0).standard_normal((2, 6, 6, 4), np.float32)
    made = circuit(model, "last", 1, seed=seed)
    masked = with_masks(model.network(), variables, made.masks)
    wanted = np.asarray(Again().apply(masked, images))[..., 1]
    with jc.pytorch.masked(network, made), torch.no_grad():
        check(network(nchw(images))[:, 1], wanted)
    assert check(jc.compact(model, made)(images), wanted)
    with torch.no_grad():
        check(jc.pytorch.compact(model, made, network=network)(nchw(images)), wanted)


class Odd(nn.Module):
    """What is not in torchvision: a norm over neighbouring channels, a loop, channels in reverse, a layer scale."""

    @nn.compact
    def __call__(self, x):
        x = inception_v1.local_response_norm(nn.relu(nn.Conv(6, (3, 3), padding=1, name="a")(x)))
        x = nn.relu(nn.Conv(6, (1, 1), name="b")(x))[..., ::-1]
        x = jax.lax.fori_loop(0, 2, lambda _, y: y + jnp.roll(y, 1, -1), x)
        x = nn.Conv(6, (3, 3), padding=1, feature_group_count=3, name="c")(x)
        x = nn.GroupNorm(2, name="norm")(x) * self.param("scale", nn.initializers.ones, (6,))
        x = x.reshape(*x.shape[:-1], 3, 2).swapaxes(-1, -2).reshape(x.shape)
        x = jnp.concatenate([x[:, ::2, ::2, 1:5], nn.avg_pool(x, (2, 2), (2, 2))], -1)
        return nn.Dense(4, name="target")(nn.gelu(x).reshape(len(x), -1))


@pytest.mark.parametrize("kind", ["branches", "gates", "norms", "odd"])
def test_in_blocks_of_all_families(kind):
    module = Odd() if kind == "odd" else Blocks(kind)
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32)
    model = jc.Model(module, twins.random_variables(module, images.shape), input_size=8)
    moved, sizes = 0, []
    for seed in range(2):
        made = circuit(model, "target", 1, seed=seed, keep=(0.9, 0.5)[seed], dead=0.3)
        compact = jc.compact(model, made)
        moved += check(compact(images), in_flax(model, made, images))
        sizes.append(sum(a.size for a in jax.tree.leaves(compact.variables)))
    assert moved and sizes[1] < sum(a.size for a in jax.tree.leaves(model.variables))


# a feature with much before it, by family
FAMILIES = {
    "alexnet": "features.8",
    "vgg11_bn": "features.8",
    "convnext_tiny": "features.3.1.block.0",
    "densenet121": "features.denseblock2.denselayer2.conv2",
    "efficientnet_b0": "features.3.1.block.1.0",
    "efficientnet_v2_s": "features.4.1.block.1.0",
    "googlenet": "inception4a.branch3.1.conv",
    "inception_v3": "Mixed_6b.branch7x7_2.conv",
    "mnasnet0_5": "layers.9.1.layers.3",
    "mobilenet_v2": "features.5.conv.1.0",
    "mobilenet_v3_small": "features.5.block.1.0",
    "regnet_y_400mf": "trunk_output.block3.block3-1.f.b.0",
    "resnet18": "layer2.1.conv2",
    "resnet50": "layer2.1.conv3",
    "resnext50_32x4d": "layer2.1.conv2",
    "wide_resnet50_2": "layer1.1.conv2",
    "shufflenet_v2_x0_5": "stage3.1.branch2.5",
    "squeezenet1_1": "features.7.expand3x3",
}


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("architecture", FAMILIES)
def test_families(architecture):
    """torchvision's own networks of every family, on images that are not of the nominal size."""
    size = 96
    images = np.random.default_rng(0).standard_normal((2, size, size, 3), np.float32)
    network = random_oracle(architecture, images, np.random.default_rng(1))
    state = {key: tensor.numpy() for key, tensor in network.state_dict().items()}
    made = ARCHITECTURES[architecture]()
    module = made.copy(transform_input=True) if hasattr(made, "transform_input") else made
    template = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 224, 224, 3), np.float32))
    model = jc.Model(module, to_flax(state, template).variables, name=architecture, input_size=size)
    layer = FAMILIES[architecture]
    made = circuit(model, layer, 3, keep=0.8, dead=0.25)
    made = jc.Circuit({n: m | (model.layers[n].inputs == 1) for n, m in made.masks.items()}, made.manifest)
    wanted = expected(network, made, images)
    compact = jc.compact(model, made)
    assert check(compact(images), wanted), "the feature depends on the images"
    in_torch = jc.pytorch.compact(model, made)
    assert isinstance(in_torch, torch.fx.GraphModule)
    with torch.no_grad():
        check(in_torch(nchw(images)), wanted)
    sizes = [sum(a.size for a in jax.tree.leaves(m.variables)) for m in (compact, model)]
    assert sizes[0] < sizes[1]
    assert sum(p.numel() for p in in_torch.parameters()) < sizes[1]


@pytest.mark.parametrize(
    "inputs, outputs, groups",
    [(3, 24, 1), (3, 46, 1), (5, 60, 1), (30, 17, 1), (4, 16, 1), (15, 9, 3), (16, 8, 4), (4, 8, 4)],
)
def test_convolutions_filled_up_with_zeros(inputs, outputs, groups):
    """They compute what they would without."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 9, 8, inputs)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 2, inputs // groups, outputs)), jnp.float32)
    options: Any = {
        "feature_group_count": groups,
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
        "rhs_dilation": (2, 1),
    }
    found = convolution(x, kernel, (2, 1), "SAME", **options)
    expected = jax.lax.conv_general_dilated(x, kernel, (2, 1), "SAME", **options)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
