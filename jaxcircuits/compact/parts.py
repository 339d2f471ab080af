"""Arrays of which only some channels are there."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array


class Part(NamedTuple):
    """Some channels of an array.

    Attributes:
        value: the array, with one axis for its channels.
        axis: where that is.
        whole: the lengths of the axes of the whole array that it stands for, usually one.
        index: (n,) which places of these axes, flattened, are there; rising but for shuffles.
    """

    value: Array
    axis: int
    whole: tuple[int, ...]
    index: np.ndarray

    @property
    def size(self) -> int:
        return math.prod(self.whole)

    def pick(self, index: np.ndarray) -> Array:
        """The given channels along the axis, zeros for those that are not there."""
        if np.array_equal(index, self.index):
            return self.value
        place = np.full(self.size, len(self.index))
        place[self.index] = np.arange(len(self.index))
        value, found = self.value, place[index]
        if (found == len(self.index)).any():
            value = jnp.pad(value, [(0, int(a == self.axis)) for a in range(value.ndim)])
        return jnp.take(value, found, self.axis)

    def filled(self) -> Array:
        """The whole array."""
        value = self.pick(np.arange(self.size))
        return value.reshape(*value.shape[: self.axis], *self.whole, *value.shape[self.axis + 1 :])


Known = Any  # an Array or a Part


def whole(value: Known) -> Array:
    return value.filled() if isinstance(value, Part) else value


def pick(value: Known, index: np.ndarray) -> Array:
    """Some channels of the last axis."""
    if isinstance(value, Part) and value.axis == value.value.ndim - 1 and len(value.whole) == 1:
        return value.pick(index)
    value = whole(value)
    return value if np.array_equal(index, np.arange(value.shape[-1])) else jnp.take(value, index, -1)
