"""Max pooling against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxcircuits.pooling import max_pool

rng = np.random.default_rng(0)

RANDOM = rng.standard_normal((2, 9, 7, 3)).astype(np.float32)
IMAGES = {
    "random": RANDOM,
    "negative": -np.abs(RANDOM),  # padding must not win
    "ties": RANDOM.round(),
    "flat": np.ones_like(RANDOM),
    "flat regions": np.maximum(RANDOM.repeat(3, 1)[:, :9], 0),
}


def torch_pool(x, cotangent, *options):
    """PyTorch's pooling and its gradient, in Flax's order of axes."""
    x = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    y = torch.nn.functional.max_pool2d(x, *options[:3], ceil_mode=options[3])
    cotangent = cotangent(y.permute(0, 2, 3, 1).shape)
    (gradient,) = torch.autograd.grad(y, x, torch.tensor(cotangent.transpose(0, 3, 1, 2)))
    return *(a.detach().permute(0, 2, 3, 1).numpy() for a in (y, gradient)), cotangent


@pytest.mark.parametrize(
    "options", [(2, 2, 0, False), (3, 2, 1, False), (3, 2, 0, True), (2, 3, 1, True), (3, 1, 1, False), (5, 3, 2, True)]
)
def test_max_pool_and_its_gradient_are_pytorchs(options):
    for x in IMAGES.values():
        expected, gradient, cotangent = torch_pool(x, lambda s: rng.standard_normal(s, np.float32), *options)
        y, pullback = jax.vjp(lambda x: max_pool(x, *options), x)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(max_pool(x, *options), expected)  # without a gradient it runs other code
        np.testing.assert_allclose(pullback(jnp.asarray(cotangent))[0], gradient, atol=1e-6)


def test_max_pool_of_many_cotangents():
    y, pullback = jax.vjp(lambda x: max_pool(x, 3, 2, 1, True), IMAGES["ties"])
    cotangents = rng.standard_normal((4, *y.shape)).astype(np.float32)
    together = jax.vmap(pullback)(cotangents)[0]
    for one, cotangent in zip(together, cotangents, strict=True):
        _, gradient, _ = torch_pool(IMAGES["ties"], lambda s, c=cotangent: c, 3, 2, 1, True)
        np.testing.assert_allclose(one, gradient, atol=1e-6)


POOLS = [(3, 2, 0, False), (2, 2, 0, False), (3, 1, 1, False), (3, 2, 1, True)]


@pytest.mark.parametrize("window, stride, padding, ceil", POOLS)
def test_max_pool_of_many_features(window, stride, padding, ceil):
    """The gradients of nine features are those of one feature after another, ties and all."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.maximum(rng.integers(-3, 3, (2, 9, 8, 3)), 0), jnp.float32)
    y, pullback = jax.vjp(lambda x: max_pool(x, window, stride, padding, ceil), x)
    g = jnp.asarray(rng.standard_normal((9, *y.shape)), jnp.float32)
    (found,) = jax.jit(jax.vmap(pullback))(g)
    np.testing.assert_allclose(found, np.stack([pullback(one)[0] for one in g]), atol=1e-6)
