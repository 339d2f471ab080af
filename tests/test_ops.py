"""Pieces of a convolution against JAX's own."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxcircuits import ops
from jaxcircuits.ops import feature_input_gradients, feature_maps, kernel_gradients, patches, seen_by

rng = np.random.default_rng(0)


def geometry(window, strides, padding, dilation, size):
    """What the pieces read of a layer, for maps of this size."""
    reach = [(w - 1) * d + 1 for w, d in zip(window, dilation, strict=True)]
    positions = tuple((n + sum(p) - r) // s + 1 for n, p, r, s in zip(size[:2], padding, reach, strides, strict=True))
    return SimpleNamespace(
        window=window,
        strides=strides,
        padding=padding,
        dilation=dilation,
        positions=positions,
        input_maps=size,
        groups=1,
        inputs=size[2],
        outputs=4,
    )


@pytest.mark.parametrize(
    "window, strides, padding, dilation",
    [
        ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
        ((1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1)),
        ((5, 2), (2, 3), ((2, 1), (0, 1)), (1, 1)),  # padded differently at each side, rows left over
        ((3, 2), (2, 1), ((2, 2), (3, 0)), (2, 3)),
        ((2, 3), (1, 2), ((4, 3), (0, 5)), (1, 1)),  # windows that see nothing but padding
        ((3, 1), (4, 1), ((0, 0), (0, 0)), (1, 1)),  # steps larger than the window
    ],
)
def test_convolution_in_pieces(window, strides, padding, dilation, monkeypatch):
    x = rng.standard_normal((2, 9, 7, 3)).astype(np.float32)
    layer = geometry(window, strides, padding, dilation, x.shape[1:])
    kernels = rng.standard_normal((4, window[0] * window[1], 3)).astype(np.float32)  # F = 4 features

    def convolve(x):
        kernel = kernels.reshape(4, *window, 3).transpose(1, 2, 3, 0)
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=numbers, precision="highest"
        )

    maps, pullback = jax.vjp(convolve, x)
    seen = patches(layer, x)
    assert seen.shape == (2, np.prod(layer.positions), window[0] * window[1], 3)
    by_product = np.einsum("npkc,fkc->npf", seen, kernels)
    np.testing.assert_allclose(by_product.reshape(maps.shape), maps, atol=1e-5)

    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(feature_maps(layer, x, kernels), maps.transpose(3, 0, 1, 2), atol=1e-5)

    cotangents = rng.standard_normal((4, *maps.shape[:3])).astype(np.float32)
    found = feature_input_gradients(layer, jnp.asarray(cotangents), kernels)
    for f in range(4):
        alone = np.zeros(maps.shape, np.float32)
        alone[..., f] = cotangents[f]
        np.testing.assert_allclose(found[f], pullback(alone)[0], atol=1e-5)

    g = rng.standard_normal((2, np.prod(layer.positions), 4)).astype(np.float32)
    expected = np.einsum("npo,npkc->kco", g, seen)
    with jax.default_matmul_precision("highest"):
        # on a CPU by a product of all patches, a convolution, patches again, by strips of one row, of some, and of all
        for ungrouped, thin, small, strip in (
            (True, 16, 64, 1024),
            (True, 16, 0, 1024),
            (False, 16, 0, 1024),
            (True, 1, 0, 1),
            (True, 1, 0, 16),
            (True, 1, 0, 1024),
        ):
            layer.ungrouped = ungrouped
            monkeypatch.setattr(ops, "THIN", thin)
            monkeypatch.setattr(ops, "SMALL", small)
            monkeypatch.setattr(ops, "STRIP", strip)
            others = jnp.concatenate([jnp.ones_like(g), g, jnp.ones_like(g)])
            gradients = kernel_gradients(layer, seen_by(layer, x), others, len(g))
            np.testing.assert_allclose(gradients, expected, atol=1e-4)
