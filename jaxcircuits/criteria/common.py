"""What a criterion over images consists of."""

from collections.abc import Callable
from typing import NamedTuple

from jax import Array

from jaxcircuits.layers import Layer


class Statistic(NamedTuple):
    """A sum over images, and the scores made of it; its shape and what it is made from are each criterion's own.

    Attributes:
        shape: (layer, F) -> the shape of a sum.
        add: (sum, layer, seen, ...) -> the sum with some more images; the rest stands in `Criterion`.
        finish: (sum, layer, ..., N) -> scores: of weights (F, K, I, O), kernels (F, I, O) or filters (F, O).
        seen: (layer, x) -> what `add` takes of x, for any number of features.
    """

    shape: Callable[[Layer, int], tuple[int, ...]]
    add: Callable[..., Array]
    finish: Callable[..., Array]
    seen: Callable[[Layer, Array], Array] = lambda layer, x: x

    def added(self, total: Array, layer: Layer, x: Array, *rest: Array) -> Array:
        """`add` of what is seen of x."""
        return self.add(total, layer, self.seen(layer, x), *rest)


class Criterion(NamedTuple):
    """One criterion with its options: sums for three kinds of layers.

    Attributes:
        dense: of a layer before the feature's. Added are x (N, H, W, C), g (F, N, P, O) and w (K, I, O); w finishes.
        on_support: the same from the places where g is not zero. Added are x, g, on (N, P, O) bool and w (O, K, I),
            so that what is made for one output channel reads near memory.
        target: of the feature's own layer, whose output gradient is the outer product of c (F, N, P) and d (F, O).
            Added are x, c, d and w; d and w finish.
        of_outputs: x is not the layer's input but its output (N, H', W', O), with the bias.
        shared: features share more than the forward pass also where the support is dense.
    """

    dense: Statistic
    on_support: Statistic
    target: Statistic
    of_outputs: bool = False
    shared: bool = False


def same(a: Array) -> Array:
    """What stands in place of an absolute value where signs are kept."""
    return a
