"""Relevant and effective kernels against brute force: take one kernel away, does the feature move?"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import jaxcircuits as jc
from jaxcircuits import paths
from jaxcircuits.masks import count
from jaxcircuits.pooling import max_pool
from tests.twins import random_variables

SIZE = 8
rng = np.random.default_rng(0)
image = rng.uniform(0.5, 1.5, (1, SIZE, SIZE, 3)).astype(np.float32)


class Branches(nn.Module):
    """Branches of different depth, concatenated; ReLU6, pooling, groups, BatchNorm, a skip."""

    @nn.compact
    def __call__(self, x):
        x = max_pool(jax.nn.relu6(nn.Conv(4, (3, 3), strides=2, padding=2, name="stem")(x)), 2, 1)
        a = nn.relu(nn.Conv(2, (1, 1), name="short")(x))
        b = nn.relu(nn.Conv(2, (3, 1), name="long.0", padding="SAME")(x))
        b = nn.relu(nn.Conv(4, (3, 3), name="long.1", padding=1, feature_group_count=2)(b))
        x = jnp.concatenate([a, b], -1)
        y = nn.Conv(6, (3, 3), padding=1, feature_group_count=3, name="grouped")(x)
        x = nn.relu(x + nn.BatchNorm(use_running_average=True, name="bn")(y))
        x = nn.relu(nn.Conv(4, (2, 2), feature_group_count=2, name="target")(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class Gated(nn.Module):
    """Hard-swish, a depthwise convolution, squeeze and excitation, layer scale, global pooling, dense layers."""

    norm: bool

    @nn.compact
    def __call__(self, x):
        x = jax.nn.hard_swish(nn.Conv(4, (3, 3), padding=1, name="stem")(x))
        x = jax.nn.hard_swish(nn.Conv(4, (3, 3), feature_group_count=4, strides=2, name="depthwise")(x))
        gate = nn.relu(nn.Dense(3, name="squeeze")(x.mean((1, 2), keepdims=True)))
        x = x * jax.nn.hard_sigmoid(nn.Dense(4, name="excite")(gate))
        if self.norm:
            x = jax.nn.softplus(nn.LayerNorm(name="norm")(x))
        x = x + self.param("scale", nn.initializers.ones, (4,)) * nn.gelu(nn.Conv(4, (1, 1), name="inner")(x))
        x = nn.relu(nn.Dense(4, name="hidden")(x.mean((1, 2))))
        return nn.Dense(3, name="target")(x)


def positive(module):
    """Positive weights so small that nothing saturates, no biases, and BatchNorm without effect."""

    def leaf(path, values):
        name = path[-1].key
        if name in ("bias", "mean"):
            return np.zeros_like(values)
        return (np.abs(values) + 0.1) / np.prod(values.shape[:-1]).clip(1)

    variables = random_variables(module, image.shape)
    return jax.tree_util.tree_map_with_path(leaf, variables)


def brute_force(model, features, masks):
    """{layer: (F, I, O) bool}: the kept kernels without which a feature has another value, one kernel at a time."""
    target = model.layers[features.layer]

    @jax.jit
    def output(masks):
        params = flatten_dict(model.variables["params"])
        for name, mask in masks.items():
            params[*model.layers[name].path, "kernel"] *= mask
        chosen = lambda module, method: method == "__call__" and module.path == target.path  # noqa: E731
        variables = {**model.variables, "params": unflatten_dict(params)}
        _, state = model.module.apply(variables, image, capture_intermediates=chosen, mutable=["intermediates"])
        return jax.tree.leaves(state["intermediates"])[0]

    matrix = features.matrix(target.outputs) != 0
    found = {name: np.zeros(mask.shape, bool) for name, mask in masks.items()}
    for f, direction in enumerate(matrix):
        kept = {name: np.asarray(mask[f]) for name, mask in masks.items()}
        before = output(kept)
        for name, mask in kept.items():
            for i, o in np.argwhere(mask):
                without = mask.copy()
                without[i, o] = False
                moved = np.asarray(output({**kept, name: without}) != before)
                found[name][f, i, o] = moved[..., direction].any()
    return found


CASES = [
    (Branches(), jc.Features("target", directions=[[1, 0, 0, 0], [0, 0, 1, -1], [1, 0, 0, -1]])),
    (Branches(), jc.Features("head", [1])),
    (Gated(norm=False), jc.Features("target", [0, 2])),
    (Gated(norm=True), jc.Features("target", [1])),
]


@pytest.mark.parametrize("module, features", CASES)
def test_relevant_and_effective_kernels(module, features):
    """Brute force without biases: there, whatever does not begin at the pixels is zero. Weights do not matter."""
    model = jc.Model(module, random_variables(module, image.shape), input_size=SIZE)
    plain = jc.Model(module, positive(module), input_size=SIZE)
    relevant = {name: np.asarray(mask) for name, mask in jc.relevant_kernels(model, features).items()}
    expected = brute_force(plain, features, {name: np.ones(mask.shape, bool) for name, mask in relevant.items()})
    for name, mask in relevant.items():
        np.testing.assert_array_equal(mask, expected[name], name)
    assert not all(mask.all() for mask in relevant.values())
    if module == Gated(norm=True):  # a normalisation lets a feature depend on kernels that no path leads from
        return

    masks = {name: mask & (rng.random(mask.shape) < 0.6) for name, mask in relevant.items()}
    effective = jc.effective_kernels(model, features, masks)
    expected = brute_force(plain, features, masks)
    for name in masks:
        np.testing.assert_array_equal(effective[name], expected[name], name)
    assert (count(effective) < count(masks)).all()
    np.testing.assert_array_equal(count(jc.effective_kernels(model, features, relevant)), count(relevant))
    blind = relevant | {"stem": np.zeros_like(relevant["stem"])}
    assert not count(jc.effective_kernels(model, features, blind)).any()


def test_a_grouped_layers_chunks_are_not_kept(small):
    """Each has its own kinds of features; what was found of all of them would fill the memory."""
    known = paths._KNOWN.setdefault(small.model.network(), {})
    before = set(known)
    for channels in ([0], [4], [0, 4], [1, 5], [0, 7, 4], [4, 0]):
        mask = jc.relevant_kernels(small.model, jc.Features("layer1.conv1", channels))["features.0"]
        alone = [jc.relevant_kernels(small.model, jc.Features("layer1.conv1", [c]))["features.0"][0] for c in channels]
        np.testing.assert_array_equal(mask, alone)
    assert len(set(known) - before) <= 2, "the last of one kind and the last of several"


def test_some_layers(small):
    """Those asked for, in call order; layers without a mask keep all their kernels."""
    features = jc.Features("features.3", [0])
    relevant = jc.relevant_kernels(small.model, features, layers=("layer1.conv1", "features.0"))
    assert list(relevant) == ["features.0", "layer1.conv1"] and all(mask.all() for mask in relevant.values())
    mask = np.arange(32).reshape(1, 4, 8) % 3 == 0
    found = jc.effective_kernels(small.model, features, {"layer1.conv1": mask})
    assert list(found) == ["layer1.conv1"]
    np.testing.assert_array_equal(found["layer1.conv1"], mask)
    for wrong in (mask[0], np.concatenate([mask, mask]), mask.swapaxes(1, 2)):
        with pytest.raises(jc.InputError, match=r"expected \(1, 4, 8\)|expected \(1, 8\)"):
            jc.effective_kernels(small.model, features, {"layer1.conv1": wrong})


@pytest.mark.full
@pytest.mark.slow
def test_alexnets_relevant_kernels_of_a_class():
    found = jc.relevant_kernels(jc.load("alexnet", weights="random"), jc.Features("classifier.6", [7]))
    expected = [3 * 64, 64 * 192, 192 * 384, 384 * 256, 256 * 256, 9216 * 4096, 4096 * 4096, 4096]
    assert [count({name: mask}).item() for name, mask in found.items()] == expected


class Centred(nn.Module):
    """Makes its images smaller than zero where they are ones."""

    @nn.compact
    def __call__(self, x):
        x = (x - 127.5) / 127.5
        return nn.Conv(2, (3, 3), name="b")(nn.relu(nn.Conv(4, (3, 3), name="a")(x)))


def test_a_module_that_normalises_its_images_itself():
    model = jc.Model(Centred(), random_variables(Centred(), (1, 9, 9, 3)), input_size=9)
    found = jc.relevant_kernels(model, jc.Features("b", [1]))
    assert found["a"].all() and np.asarray(found["b"])[0, :, 1].all() and not np.asarray(found["b"])[0, :, 0].any()


class Subtracting(nn.Module):
    way: str

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), padding=1, name="a")(x))
        if self.way == "mean":
            x = x - x.mean((1, 2), keepdims=True)
        elif self.way == "difference":
            x = nn.relu(x - nn.Conv(4, (3, 3), padding=1, name="other")(x))
        else:
            for number in range(7):
                x = jax.nn.relu6(x + nn.Conv(4, (3, 3), padding=1, name=f"block{number}")(x))
        return nn.Conv(2, (3, 3), name="b")(x)


@pytest.mark.parametrize("way", ["mean", "difference", "saturated"])
def test_networks_whose_paths_cannot_be_told_are_refused(way):
    module = Subtracting(way)
    model = jc.Model(module, random_variables(module, (1, 9, 9, 3)), input_size=9)
    message = "a gradient leads from '.*' to 'b', but no path of positive numbers: .* Subtracting subtracts or limits"
    for verb in (jc.relevant_kernels, lambda m, f: jc.score(m, np.ones((2, 9, 9, 3), np.float32), f)):
        with pytest.raises(jc.InputError, match=message):
            verb(model, jc.Features("b", [1]))
    jc.relevant_kernels(model, jc.Features("a", [1]))
