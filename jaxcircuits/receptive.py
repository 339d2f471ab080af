"""Which pixels each position of a layer sees, by arithmetic on the network's own operations.

A walk through the network's jaxpr carries, for rows and for columns, the first and last pixel that each index of an
array's axis depends on. Whatever mixes positions in a way that is not a window, such as a mean, a gate or a dense
layer, sees what all its positions see together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcircuits.jaxprs import LOOPS, by_element, called
from jaxcircuits.layers import Layer, Variables
from jaxcircuits.model import Model
from jaxcircuits.taps import Network

NOTHING = np.iinfo(np.int32).max  # the first pixel of what depends on none


class ReceptiveField(NamedTuple):
    """What each position of a layer's output sees of the image, padding left out.

    Attributes:
        rows: (H, 2) int, the first pixel row that each row of positions sees, and the first behind the last.
        columns: (W, 2) int, the same for columns.
    """

    rows: np.ndarray
    columns: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, in pixels, of what the position with the largest view sees."""
        return tuple(int((ends[:, 1] - ends[:, 0]).max()) for ends in self)  # pyright: ignore[reportReturnType]

    def box(self, h: int, w: int) -> tuple[slice, slice]:
        """Rows and columns of the image that position (h, w) sees."""
        return slice(*self.rows[h].tolist()), slice(*self.columns[w].tolist())


def receptive_fields(model: Model, *, image_shape: tuple[int, int, int] | None = None) -> dict[str, ReceptiveField]:
    """The receptive field of every layer, in call order.

    Args:
        model: whose network it is; weights do not matter.
        image_shape: (H, W, C) of the images, by default the model's nominal size.

    Raises:
        InputError: images of a shape that the network cannot take.
    """
    return fields(model.network(image_shape), model.variables)


def fields(network: Network, variables: Variables) -> dict[str, ReceptiveField]:
    """`receptive_fields` from variables or their shapes."""
    image = jax.ShapeDtypeStruct((1, *network.image_shape), jnp.float32)
    seen = depends(lambda image, variables: network.run(variables, image), (1, 2), image, variables)
    found = {}
    for name in (name for name in network.layers if name in seen[0]):
        layer = network.layers[name]
        found[name] = ReceptiveField(*(_of_layer(layer, axis, seen[axis][name]) for axis in (0, 1)))
    return found


def depends(run: Callable[..., Any], axes: Sequence[int], source: Any, *others: Any) -> list[Any]:
    """What each result of run(source, *others) sees along each of these axes of the source, from shapes."""
    closed, shapes = jax.make_jaxpr(run, return_shape=True)(source, *others)
    found = []
    for axis in axes:
        place = np.arange(source.shape[axis])
        given = [_Seen(axis, place, place + 1), *[_Seen.nothing()] * (len(closed.in_avals) - 1)]
        found.append(jax.tree.unflatten(jax.tree.structure(shapes), _walk(closed.jaxpr, given)))
    return found


def _of_layer(layer: Layer, axis: int, seen: _Seen) -> np.ndarray:
    """(H, 2) from what the layer's input (N, H, W, C) sees."""
    count = layer.positions[axis]
    if seen.axis == axis + 1:
        seen = seen.windows(
            axis + 1, layer.window[axis], layer.strides[axis], layer.padding[axis], layer.dilation[axis]
        )
    return np.stack([np.broadcast_to(ends, count) for ends in (seen.first, seen.end)], -1)


class _Seen(NamedTuple):
    """The pixels, from first to before end, that each index along an axis depends on; along none, all alike."""

    axis: int | None
    first: np.ndarray
    end: np.ndarray

    @classmethod
    def nothing(cls) -> _Seen:
        return cls(None, np.array([NOTHING]), np.array([0]))

    @classmethod
    def union(cls, parts: Sequence[_Seen]) -> _Seen:
        axes = {part.axis for part in parts if part.axis is not None}
        if len(axes) > 1:
            return cls.union([part.everywhere() for part in parts])
        first, end = parts[0].first, parts[0].end
        for part in parts[1:]:
            first, end = np.minimum(first, part.first), np.maximum(end, part.end)
        return cls(axes.pop() if axes else None, first, end)

    def everywhere(self) -> _Seen:
        """What all indices together see."""
        return _Seen(None, self.first.min(keepdims=True), self.end.max(keepdims=True))

    def along(self, axis: int | None) -> _Seen:
        return self.everywhere() if axis is None else self._replace(axis=axis)

    def at(self, index: np.ndarray) -> _Seen:
        """The given indices; nothing for those that are negative or beyond."""
        inside = (index >= 0) & (index < len(self.first))
        index = np.clip(index, 0, len(self.first) - 1)
        first, end = np.where(inside, self.first[index], NOTHING), np.where(inside, self.end[index], 0)
        return _Seen(self.axis, first, end)

    def windows(
        self, axis: int, window: int, stride: int, padding: tuple[int, int], dilation: int = 1, spread: int = 1
    ) -> _Seen:
        """What windows over the axis see, whose elements lie `spread` apart."""
        length = (len(self.first) - 1) * spread + 1 + sum(padding)
        starts = np.arange(0, length - (window - 1) * dilation, stride) - padding[0]
        index = starts[:, None] + np.arange(window) * dilation
        seen = self.at(np.where(index % spread == 0, index // spread, -1))
        return _Seen(axis, seen.first.min(1), seen.end.max(1))


def _walk(jaxpr, given: Sequence[_Seen]) -> list[_Seen]:
    """What the results of a jaxpr see."""
    known = dict(zip(jaxpr.invars, given, strict=True))

    def seen(variables) -> list[_Seen]:
        # literals have no hash, and constants are not known
        return [_Seen.nothing() if hasattr(v, "val") else known.get(v, _Seen.nothing()) for v in variables]

    for equation in jaxpr.eqns:
        known |= dict(zip(equation.outvars, _apply(equation, seen(equation.invars)), strict=True))
    return seen(jaxpr.outvars)


def _apply(equation, seen: list[_Seen]) -> list[_Seen]:
    name, results = equation.primitive.name, equation.outvars
    if not seen or all(part.end.max() == 0 for part in seen):
        return [_Seen.nothing()] * len(results)
    if name not in LOOPS and (inner := called(equation)) is not None:
        return _walk(inner.jaxpr, seen)
    shapes = [v.aval.shape for v in equation.invars]
    if name == "split":
        return _split(equation.params, seen[0])
    if name.startswith("reduce_window"):
        return [_reduce_window(equation.params, seen[0])] * len(results)
    if "axes" in equation.params and (name.startswith("reduce_") or name in ("argmax", "argmin")):
        return [_reduced(equation.params["axes"], part) for part in seen[: len(results)]]
    if name in RULES:
        return [RULES[name](equation.params, seen, shapes, results[0].aval.shape)]
    if by_element(equation):
        return [_elementwise(seen, results[0].aval.shape)] * len(results)
    return [_Seen.union(seen).everywhere()] * len(results)


def _elementwise(seen: list[_Seen], result: tuple[int, ...]) -> _Seen:
    spread = lambda part: part.axis is not None and len(part.first) != result[part.axis]  # noqa: E731
    return _Seen.union([part.everywhere() if spread(part) else part for part in seen])


def _split(params: Mapping[str, Any], seen: _Seen) -> list[_Seen]:
    if seen.axis != params["axis"]:
        return [seen] * len(params["sizes"])
    starts = np.cumsum([0, *params["sizes"]])
    return [seen.at(np.arange(a, b)) for a, b in itertools.pairwise(starts)]


def _reduce_window(params: Mapping[str, Any], seen: _Seen) -> _Seen:
    if (a := seen.axis) is None:
        return seen
    options = ("window_dimensions", "window_strides", "padding", "window_dilation", "base_dilation")
    window, stride, padding, dilation, spread = (params[name][a] for name in options)
    return seen.windows(a, window, stride, padding, dilation, spread)


def _reduced(axes: Sequence[int], seen: _Seen) -> _Seen:
    if seen.axis is None or seen.axis in axes:
        return seen.everywhere()
    return seen.along(seen.axis - sum(a < seen.axis for a in axes))


def _conv(params, seen, shapes, result) -> _Seen:
    image, kernel = seen
    numbers, a = params["dimension_numbers"], image.axis
    if kernel.end.max() or a not in numbers.lhs_spec[2:]:
        return _Seen.union(seen).everywhere()
    k = numbers.lhs_spec.index(a) - 2
    return image.windows(
        numbers.out_spec[2 + k],
        shapes[1][numbers.rhs_spec[2 + k]],
        params["window_strides"][k],
        params["padding"][k],
        params["rhs_dilation"][k],
        params["lhs_dilation"][k],
    )


def _dot(params, seen, shapes, result) -> _Seen:
    (contracted, batched), parts = params["dimension_numbers"], []
    free_before = len(batched[0])
    for side, part in enumerate(seen):
        rest = [a for a in range(len(shapes[side])) if a not in (*contracted[side], *batched[side])]
        if part.axis in batched[side]:
            parts.append(part.along(list(batched[side]).index(part.axis)))
        elif part.axis in rest:
            parts.append(part.along(free_before + rest.index(part.axis)))
        else:
            parts.append(part.everywhere())
        free_before += len(rest)
    return _Seen.union(parts)


def _broadcast(params, seen, shapes, result) -> _Seen:
    a = seen[0].axis
    if a is None or shapes[0][a] != result[params["broadcast_dimensions"][a]]:
        return seen[0].everywhere()
    return seen[0].along(params["broadcast_dimensions"][a])


def _reshape(params, seen, shapes, result) -> _Seen:
    a = seen[0].axis
    if a is None:
        return seen[0]
    before = math.prod(shapes[0][:a])
    same = (b for b, n in enumerate(result) if n == shapes[0][a] and math.prod(result[:b]) == before)
    return seen[0].along(next(same, None))


def _transpose(params, seen, shapes, result) -> _Seen:
    a = seen[0].axis
    return seen[0] if a is None else seen[0].along(list(params["permutation"]).index(a))


def _slice(params, seen, shapes, result) -> _Seen:
    if (a := seen[0].axis) is None:
        return seen[0]
    step = (params["strides"] or [1] * len(result))[a]
    return seen[0].at(np.arange(params["start_indices"][a], params["limit_indices"][a], step))


def _pad(params, seen, shapes, result) -> _Seen:
    if (a := seen[0].axis) is None:
        return _Seen.union(seen)
    low, _, interior = params["padding_config"][a]
    index = np.arange(result[a]) - low
    padded = seen[0].at(np.where(index % (interior + 1) == 0, index // (interior + 1), -1))
    return _Seen.union([padded, seen[1]])


def _concatenate(params, seen, shapes, result) -> _Seen:
    dimension = params["dimension"]
    if all(part.axis != dimension for part in seen):
        return _Seen.union(seen)
    if any(part.axis not in (None, dimension) for part in seen):
        return _Seen.union(seen).everywhere()
    ends = [[np.broadcast_to(e, shape[dimension]) for e in part[1:]] for part, shape in zip(seen, shapes, strict=True)]
    return _Seen(dimension, *(np.concatenate(side) for side in zip(*ends, strict=True)))


def _stack(params, seen, shapes, result) -> _Seen:
    new = params["axis"]
    return _Seen.union([p if p.axis is None or p.axis < new else p.along(p.axis + 1) for p in seen])


def _rev(params, seen, shapes, result) -> _Seen:
    flipped = seen[0].axis in params["dimensions"]
    return seen[0]._replace(first=seen[0].first[::-1], end=seen[0].end[::-1]) if flipped else seen[0]


RULES: dict[str, Callable[..., _Seen]] = {
    "conv_general_dilated": _conv,
    "dot_general": _dot,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": lambda params, seen, *_: _reduced(params["dimensions"], seen[0]),
    "slice": _slice,
    "pad": _pad,
    "concatenate": _concatenate,
    "stack": _stack,
    "rev": _rev,
}
