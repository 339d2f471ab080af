"""A circuit's products without the channels that are zero.

Where few kernels are kept, many channels pass nothing on: no kernel makes or reads them, no gradient comes back. Which
ones is known only when the circuit runs, so a product is compiled for all channels and for some parts of them, and the
least that holds those that are not zero is run. What is left out is exactly zero.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxcircuits.layers import Layer
from jaxcircuits.ops import THIN, convolve, convolve_back, pick

# Products are compiled for all channels divided by these, in numbers that fill vector registers.
PARTS, FULL = (8, 4, 2, 1.5, 1), 16


def _of_live(product: Callable[..., Array], *live: Array) -> Array:
    """product(*channels), of each of these (C,) the channels (n,) that live and others up to n; None for all."""
    sizes = (tuple(min(len(a), math.ceil(len(a) / part / FULL) * FULL) for a in live) for part in PARTS)
    lengths = list(dict.fromkeys(sizes))  # the same for several parts of few channels
    needed = jnp.stack([a.sum() for a in live])
    size = (needed > jnp.asarray(lengths)).any(1).sum()  # how many are too short
    orders = [jnp.argsort(~a, stable=True).astype(jnp.int32) for a in live]

    def of(*numbers: int) -> Array:
        return product(*(None if n == len(order) else order[:n] for n, order in zip(numbers, orders, strict=True)))

    return lax.switch(size, [functools.partial(of, *numbers) for numbers in lengths])


def _picked(x: Array, channels: Array | None) -> Array:
    return x if channels is None else pick(x, channels)


def _spread(x: Array, channels: Array | None, number: int) -> Array:
    """These of so many channels, the others zero."""
    if channels is None:
        return x
    place = jnp.full(number, len(channels), jnp.int32).at[channels].set(jnp.arange(len(channels), dtype=jnp.int32))
    return pick(jnp.pad(x, [*[(0, 0)] * (x.ndim - 1), (0, 1)]), place)


def _kernels(kernel: Array, inputs: Array | None, outputs: Array | None) -> Array:
    """(h, w, I, O) -> (h, w, I', O')."""
    kernel = kernel if inputs is None else kernel[:, :, inputs]
    return _picked(kernel, outputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def convolution(layer: Layer, x: Array, kernel: Array) -> Array:
    """An ungrouped layer's convolution (N, H, W, I) -> (N, H', W', O) of a kernel (h, w, I, O) that is often zero.

    Kernel gradients are not provided.
    """
    kept = (kernel != 0).any((0, 1))

    def product(inputs: Array | None, outputs: Array | None) -> Array:
        y = convolve(layer, _picked(x, inputs), _kernels(kernel, inputs, outputs))
        return _spread(y, outputs, layer.outputs)

    return _of_live(product, kept.any(1), kept.any(0))


def _forward(layer: Layer, x: Array, kernel: Array):
    return convolution(layer, x, kernel), kernel


def _backward(layer: Layer, kernel: Array, g: Array):
    live = (g != 0).any((0, 1, 2))
    wanted = ((kernel != 0) & live).any((0, 1, 3))

    def product(inputs: Array | None, outputs: Array | None) -> Array:
        gradient = convolve_back(layer, _picked(g, outputs), _kernels(kernel, inputs, outputs))
        return _spread(gradient, inputs, layer.inputs)

    return _of_live(product, wanted, live), None


convolution.defvjp(_forward, _backward)


def add(make: Callable[..., Array], total: Array, layer: Layer, x: Array, g: Array, w: Array) -> Array:
    """make(total, layer, x, g, w), but for the output channels without a gradient g (1, N, P, O); their total stays."""
    if layer.inputs < THIN:  # the convolution that multiplies there has no fast way in a branch
        return make(total, layer, x, g, w)

    def product(outputs: Array | None) -> Array:
        if outputs is None:
            return make(total, layer, x, g, w)
        some = dataclasses.replace(layer, outputs=len(outputs), output_shape=(*layer.output_shape[:-1], len(outputs)))
        found = make(_picked(total, outputs), some, x, _picked(g, outputs), _picked(w, outputs))
        return total.at[..., outputs].set(found, unique_indices=True)

    return _of_live(product, (g != 0).any((0, 1, 2)))
