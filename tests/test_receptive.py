"""Receptive fields against a forward pass in which one row or column of pixels is not a number."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcircuits as jc
from jaxcircuits.loading import describe_architecture
from jaxcircuits.models.common import adaptive_average_pool
from jaxcircuits.pooling import max_pool
from jaxcircuits.receptive import fields
from tests.twins import random_variables

SHAPE = (25, 25, 3)


class Windows(nn.Module):
    """Every kind of window: strides, dilation, uneven padding, pooling of all kinds, branches, channel shuffle."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 5), strides=(2, 1), padding=((0, 1), (2, 2)), name="stem")(x))
        a = nn.relu(nn.Conv(2, (1, 1), name="short")(x))
        b = nn.gelu(nn.Conv(2, (3, 1), kernel_dilation=2, padding="SAME", name="long.0")(x))
        b = nn.relu(nn.Conv(2, (3, 3), padding=1, name="long.1")(b))
        x = max_pool(jnp.concatenate([a, b], -1), 3, 2, 1, True)
        x = x.reshape(*x.shape[:3], 2, 2).swapaxes(3, 4).reshape(x.shape)
        x, y = jnp.split(x, 2, axis=-1)
        x = nn.avg_pool(jnp.concatenate([x, nn.silu(y)], -1), (2, 2), (1, 1))
        x = jnp.stack(jnp.split(x, 2, axis=-1), -1).reshape(x.shape)
        x = nn.max_pool(jnp.pad(x, ((0, 0), (1, 0), (0, 1), (0, 0))), (2, 2), (1, 1))
        y = nn.Conv(4, (2, 2), padding="VALID", name="even")(x[:, ::-1][:, 1:, ::2])
        return nn.Dense(2, name="maps")(y) + nn.Dense(2, name="mean")(x.mean((1, 2), keepdims=True))


class Gated(nn.Module):
    """What comes after a gate sees everything, and so does a layer after adaptive pooling."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2, name="before")(x))
        x = x * nn.sigmoid(nn.Dense(4, name="gate")(x.mean((1, 2), keepdims=True)))
        x = nn.LayerNorm(name="norm")(nn.Conv(4, (3, 3), padding=1, name="after")(x))
        return nn.Conv(2, (1, 1), name="pooled")(adaptive_average_pool(x, 3))


def outputs(module, variables, images):
    layers = lambda module, method: isinstance(module, nn.Conv | nn.Dense) and method == "__call__"  # noqa: E731
    run = functools.partial(module.apply, capture_intermediates=layers, mutable=["intermediates"])
    _, state = jax.jit(run)(variables, images)
    found = {}
    for path, (value,) in jax.tree_util.tree_flatten_with_path(
        state["intermediates"], is_leaf=lambda leaf: isinstance(leaf, tuple)
    )[0]:
        found[".".join(part.key for part in path[:-1])] = np.asarray(value)
    return found


@pytest.mark.parametrize("module", [Windows(), Gated()])
def test_a_position_sees_what_can_spoil_it(module):
    """Not-a-number in pixel row j reaches the positions whose field holds it; dilated windows
    have holes."""
    variables = random_variables(module, (1, *SHAPE))
    model = jc.Model(module, variables)
    found = jc.receptive_fields(model, image_shape=SHAPE)
    assert list(found) == list(model.network(SHAPE).layers)
    for axis in (0, 1):  # as many rows as columns: one program
        spoiled = np.ones((SHAPE[axis], *SHAPE), np.float32)
        j = np.arange(SHAPE[axis])
        np.moveaxis(spoiled, axis + 1, 1)[j, j] = np.nan
        for name, y in outputs(module, variables, spoiled).items():
            y = y.reshape(len(y), *(y.shape[1:] if y.ndim == 4 else (1, 1, y.shape[-1])))
            reached = np.isnan(y).any((2 - axis, 3))  # (pixels, positions)
            assert reached.any(0).all()
            hull = np.stack([reached.argmax(0), SHAPE[axis] - reached[::-1].argmax(0)], -1)
            np.testing.assert_array_equal(found[name][axis], hull, f"{name} {axis}")


def test_alexnets():
    """The sizes that arithmetic by hand gives, and what is left of them in the corner."""
    found = fields(*describe_architecture("alexnet"))
    assert {name: field.size for name, field in found.items()} == {
        "features.0": (11, 11),
        "features.3": (51, 51),
        "features.6": (99, 99),
        "features.8": (131, 131),
        "features.10": (163, 163),
        "classifier.1": (224, 224),
        "classifier.4": (224, 224),
        "classifier.6": (224, 224),
    }
    assert found["features.0"].box(0, 1) == (slice(0, 9), slice(2, 13))
