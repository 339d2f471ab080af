"""What a network's operations make of parts: one rule for each that moves channels, one for all that leaves them alone.

A rule returns the results, or None where it needs whole operands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxcircuits.compact.parts import Known, Part, whole
from jaxcircuits.jaxprs import by_element


def _bind(equation, values: Sequence[Array], **changed: Any) -> list[Array]:
    results = equation.primitive.bind(*values, **{**equation.params, **changed})
    return list(results) if equation.primitive.multiple_results else [results]


def apply(equation, values: list[Known]) -> list[Known]:
    """What an operation makes of parts."""
    if not any(isinstance(value, Part) for value in values):
        return _bind(equation, values)
    name, shapes = equation.primitive.name, [v.aval.shape for v in equation.invars]
    results = [v.aval.shape for v in equation.outvars]
    found = None
    if name in RULES:
        found = RULES[name](equation, values, shapes, results)
    elif name.startswith("reduce_window"):
        found = _reduce_window(equation, values)
    elif name.startswith("reduce_"):
        found = _reduce(equation, values)
    elif by_element(equation):
        found = _elementwise(equation, values, shapes)
    return _bind(equation, [whole(value) for value in values]) if found is None else found


def _elementwise(equation, values, shapes) -> list[Known] | None:
    """Channels that all operands have; an operand that is the same for all channels has every one."""
    parts = [value for value in values if isinstance(value, Part)]
    axis, lengths = parts[0].axis, parts[0].whole
    if any((part.axis, part.whole) != (axis, lengths) for part in parts):
        return None
    index = parts[0].index
    for part in parts[1:]:
        index = index if np.array_equal(index, part.index) else np.intersect1d(index, part.index)
    taken = []
    for value, shape in zip(values, shapes, strict=True):
        if isinstance(value, Part):
            taken.append(value.pick(index))
        elif not shape:
            taken.append(value)
        else:
            along = shape[axis : axis + len(lengths)]
            flat = jnp.reshape(value, (*shape[:axis], math.prod(along), *shape[axis + len(lengths) :]))
            if 1 < math.prod(along) < math.prod(lengths):
                return None
            taken.append(jnp.take(flat, index, axis) if math.prod(along) > 1 else flat)
    return [Part(result, axis, lengths, index) for result in _bind(equation, taken)]


def _reshape(equation, values, shapes, results) -> list[Known] | None:
    part, old, new = values[0], shapes[0], results[0]
    before = math.prod(old[: part.axis])
    behind = math.prod(part.value.shape[part.axis + 1 :])
    for a in reversed(range(len(new) + 1)):  # axes of length 1 stay in front
        if math.prod(new[:a]) != before:
            continue
        for b in range(a, len(new) + 1):
            if math.prod(new[a:b]) == part.size and math.prod(new[b:]) == behind and new[a:b]:
                value = part.value.reshape(*new[:a], len(part.index), *new[b:])
                return [Part(value, a, tuple(new[a:b]), part.index)]
        if a < len(new):  # what stands behind the channels becomes one axis with them
            value = part.value.reshape(*new[:a], -1)
            index = (part.index[:, None] * behind + np.arange(behind)).reshape(-1)
            return [Part(value, a, tuple(new[a:]), index)]
    return None


def _transpose(equation, values, shapes, results) -> list[Known] | None:
    part, order = values[0], [int(a) for a in equation.params["permutation"]]
    if len(part.whole) > 1:
        return None
    return [part._replace(value=part.value.transpose(order), axis=order.index(part.axis))]


def _expand(equation, values, shapes, results) -> list[Known] | None:
    part, new = values[0], equation.params["dimensions"]
    return _moved(part, shapes[0], [a for a in range(len(results[0])) if a not in new], results[0])


def _squeeze(equation, values, shapes, results) -> list[Known] | None:
    return _reshape(equation, values, shapes, results)


def _broadcast(equation, values, shapes, results) -> list[Known] | None:
    if not isinstance(values[0], Part):
        return None
    return _moved(values[0], shapes[0], equation.params["broadcast_dimensions"], results[0])


def _moved(part: Part, shape, to: Sequence[int], result) -> list[Known] | None:
    """Axes put where they stand in the result, which has more of them."""
    ends = list(to[part.axis : part.axis + len(part.whole)])
    if ends != list(range(ends[0], ends[0] + len(ends))) or tuple(result[a] for a in ends) != part.whole:
        return None
    flat = [a for a in range(len(result)) if a not in ends[1:]]  # the channels' axes are one here
    shape = [len(part.index) if a == ends[0] else result[a] for a in flat]
    given = [a for a in to if a not in ends[1:]]
    value = lax.broadcast_in_dim(part.value, shape, [flat.index(a) for a in given])
    return [Part(value, ends[0], part.whole, part.index)]


def _slice(equation, values, shapes, results) -> list[Known] | None:
    part, p = values[0], equation.params
    if len(part.whole) > 1:
        return None
    starts, ends = list(p["start_indices"]), list(p["limit_indices"])
    steps = list(p["strides"] or [1] * len(starts))
    a = part.axis
    index, there = part.index, (part.index >= starts[a]) & (part.index < ends[a])
    there &= (index - starts[a]) % steps[a] == 0
    value = part.value if there.all() else jnp.take(part.value, np.flatnonzero(there), a)
    index = (index[there] - starts[a]) // steps[a]
    starts[a], ends[a], steps[a] = 0, len(index), 1
    return [Part(lax.slice(value, starts, ends, steps), a, (results[0][a],), index)]


def _split(equation, values, shapes, results) -> list[Known] | None:
    part, a, found, start = values[0], equation.params["axis"], [], 0
    if len(part.whole) > 1:
        return None
    if a != part.axis:
        return [part._replace(value=value) for value in _bind(equation, [part.value])]
    for size in map(int, equation.params["sizes"]):
        there = (part.index >= start) & (part.index < start + size)
        value = jnp.take(part.value, np.flatnonzero(there), a)
        found.append(Part(value, a, (size,), part.index[there] - start))
        start += size
    return found


def _pad(equation, values, shapes, results) -> list[Known] | None:
    part, config = values[0], equation.params["padding_config"]
    if not isinstance(part, Part) or len(part.whole) > 1 or any(map(int, config[part.axis])):
        return None
    return [part._replace(value=_bind(equation, [part.value, values[1]])[0])]


def _concatenate(equation, values, shapes, results) -> list[Known] | None:
    return _joined(values, shapes, equation.params["dimension"])


def _stack(equation, values, shapes, results) -> list[Known] | None:
    a = equation.params["axis"]
    parts = []
    for value in values:
        if not isinstance(value, Part) or a != value.axis + len(value.whole):
            return None
        parts.append(value._replace(whole=(*value.whole, 1)))
    return _joined(parts, [(*shape[:a], 1, *shape[a:]) for shape in shapes], a)


def _joined(values, shapes, along: int) -> list[Known] | None:
    """Parts one after another along the last of their channels' axes."""
    like = next(value for value in values if isinstance(value, Part))
    axis, rank = like.axis, len(like.whole)
    if along != axis + rank - 1 or any(isinstance(v, Part) and (v.axis, len(v.whole)) != (axis, rank) for v in values):
        return None
    length, start, arrays, indices = sum(shape[along] for shape in shapes), 0, [], []
    for value, shape in zip(values, shapes, strict=True):
        last = shape[along]
        if isinstance(value, Part):
            array, index = value.value, value.index
        else:
            index = np.arange(math.prod(shape[axis : along + 1]))
            array = jnp.reshape(value, (*shape[:axis], len(index), *shape[along + 1 :]))
        arrays.append(array)
        indices.append(index // last * length + start + index % last)
        start += last
    together = (*like.whole[:-1], length)
    return [Part(jnp.concatenate(arrays, axis), axis, together, np.concatenate(indices))]


def _reduce(equation, values) -> list[Known] | None:
    part, axes = values[0], equation.params.get("axes")
    if len(values) > 1 or axes is None or any(part.axis <= a < part.axis + len(part.whole) for a in axes):
        return None
    axes = tuple(int(a) if a < part.axis else int(a) - len(part.whole) + 1 for a in axes)
    axis = part.axis - sum(a < part.axis for a in axes)
    changed = {"axes": axes} | ({"out_sharding": None} if "out_sharding" in equation.params else {})
    return [part._replace(value=value, axis=axis) for value in _bind(equation, [part.value], **changed)]


def _reduce_window(equation, values) -> list[Known] | None:
    part, p = values[0], equation.params
    if not isinstance(part, Part) or len(part.whole) > 1 or p["window_dimensions"][part.axis] != 1:
        return None
    return [part._replace(value=value) for value in _bind(equation, [part.value, *map(whole, values[1:])])]


def _dot(equation, values, shapes, results) -> list[Known] | None:
    """A product that is no layer's, such as pooling by a matrix, and leaves channels apart."""
    (contracted, batched), parts = equation.params["dimension_numbers"], []
    side = 0 if isinstance(values[0], Part) else 1
    part = values[side]
    if isinstance(values[1 - side], Part) or len(part.whole) > 1 or part.axis in (*contracted[side], *batched[side]):
        return None
    rest = [a for a in range(part.value.ndim) if a not in (*contracted[side], *batched[side])]
    axis = len(batched[0]) + rest.index(part.axis)
    if side == 1:
        axis += len(shapes[0]) - len(contracted[0]) - len(batched[0])
    parts = [v.value if isinstance(v, Part) else v for v in values]
    return [part._replace(value=value, axis=axis) for value in _bind(equation, parts)]


RULES: dict[str, Callable[..., list[Known] | None]] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "expand_dims": _expand,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "split": _split,
    "pad": _pad,
    "concatenate": _concatenate,
    "stack": _stack,
    "dot_general": _dot,
}
