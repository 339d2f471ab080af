"""The walk through a network's jaxpr that `connections` makes: what each operation does to labels.

Labels are an array's places' nodes, -1 for none; of the array's rank, with length 1 along axes where all are alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcircuits.diagram.blocks import INPUT, Block, Connections
from jaxcircuits.jaxprs import LOOPS, by_element, called


class Value(NamedTuple):
    """What is known of an array.

    Attributes:
        labels: its places' nodes; of its rank, with length 1 along axes where all are alike. None: it comes from none.
        kernel: whether it is made of a layer's kernel alone.
        layer: whose probe it is.
    """

    labels: np.ndarray | None = None
    kernel: bool = False
    layer: str = ""


class Walk:
    """One walk, and the nodes that it finds; a `strict` one follows divisors as well, and takes loops for a mixture."""

    def __init__(self, found: Connections, strict: bool = False):
        self.found, self.strict = found, strict
        self.begins: Mapping[str, tuple[int, bool]] = {}
        self.latest = INPUT
        self.known: dict[tuple[int, ...], int] = {}

    def run(self, jaxpr, given: Sequence[Value]) -> list[Value]:
        """What is known of the results of a jaxpr."""
        known = dict(zip(jaxpr.invars, given, strict=True))

        def values(variables) -> list[Value]:
            # literals have no hash, and constants come from no node
            return [Value() if hasattr(v, "val") else known.get(v, Value()) for v in variables]

        for equation in jaxpr.eqns:
            known |= dict(zip(equation.outvars, self.apply(equation, values(equation.invars)), strict=True))
        return values(jaxpr.outvars)

    def apply(self, equation, values: list[Value]) -> list[Value]:
        name, results = equation.primitive.name, equation.outvars
        if self.strict and name in LOOPS:
            return [self.mixture(values, len(v.aval.shape)) for v in results]
        if (inner := called(equation)) is not None:
            return self.run(inner.jaxpr, values)
        if probe := next((v.layer for v in values if v.layer), ""):
            if name == "add":
                return [Value(self.layer(probe, results[0].aval.shape))]
            return [Value(layer=probe)] * len(results)  # reshaped on its way to the layer
        if all(v.labels is None for v in values):
            return [Value(kernel=any(v.kernel for v in values))] * len(results)
        shapes = [v.aval.shape for v in equation.invars]
        if name in ("conv_general_dilated", "dot_general") and any(v.kernel for v in values):
            return [Value()]  # inside a layer: its output is marked by its probe
        labels = [v.labels for v in values]
        if name == "split":
            return [Value(part) for part in _split(equation.params, labels)]
        if name in RULES:
            return [Value(RULES[name](self, equation.params, labels, shapes, results[0].aval.shape))]
        if name.startswith(("reduce_window", "select_and")):
            window = equation.params.get("window_dimensions", ())
            across = tuple(a for a, size in enumerate(window) if size > 1)
            return [Value(self.mixed(labels[0], across))] * len(results)
        if "axes" in equation.params and name.startswith(("reduce_", "arg")):
            axes = tuple(equation.params["axes"])
            return [Value(np.squeeze(self.mixed(labels[0], axes), axes))] * len(results)
        if name.startswith("cum") or name in ("sort", "fft"):
            axes = tuple(range(len(shapes[0])))
            return [Value(self.mixed(labels[0], axes))] * len(results)
        if by_element(equation):
            # what is divided by scales and does not feed
            parts = [part for part in (labels[:1] if name == "div" and not self.strict else labels) if part is not None]
            sign = "+" if name in ("add", "add_any", "sub") else "×"
            return [Value(self.joined(sign, parts, len(v.aval.shape)) if parts else None) for v in results]
        return [self.mixture(values, len(v.aval.shape)) for v in results]

    def mixture(self, values: Sequence[Value], rank: int) -> Value:
        """What comes from all places of these values together."""
        every = [v.labels.reshape(-1) for v in values if v.labels is not None]
        return Value(self.mixed(np.unique(np.concatenate(every)), (0,)).reshape((1,) * rank)) if every else Value()

    def layer(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The labels of a layer's output, whose nodes begin here."""
        channels, whole = self.begins[name]
        self.latest = name
        block = Block(name, "layer", whole)
        self.found.first[name] = self.found.begin(block, [-1] if whole else range(channels))
        labels = self.found.first[name] + np.arange(1 if whole else channels)
        return labels.reshape((1,) * (len(shape) - 1) + (-1,))

    def joined(self, sign: str, parts: Sequence[np.ndarray], rank: int) -> np.ndarray:
        """The labels where arrays come together."""
        result = parts[0].reshape(parts[0].shape or (1,) * rank)
        for part in parts[1:]:
            result = self.pairs(sign, *np.broadcast_arrays(result, part.reshape(part.shape or (1,) * rank)))
        return result

    def pairs(self, sign: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        result = np.where(a < 0, b, a)
        apart = (a >= 0) & (b >= 0) & (a != b)
        if not apart.any():
            return result
        both, where = np.unique(np.stack([a[apart], b[apart]], -1), axis=0, return_inverse=True)
        channels = np.zeros(len(both), int)
        channels[where.reshape(-1)] = np.nonzero(apart)[-1]
        order = np.argsort(channels, kind="stable")
        result[apart] = self.junction(sign, both[order].tolist(), channels[order].tolist())[np.argsort(order)][
            where.reshape(-1)
        ]
        return result

    def junction(self, sign: str, parents: Sequence[Sequence[int]], channels: Sequence[int]) -> np.ndarray:
        """The nodes that join the given ones, which may be there already."""
        groups = [tuple(sorted({int(p) for p in group})) for group in parents]
        new = [k for k, group in enumerate(groups) if group not in self.known]
        if new:
            start = self.found.begin(Block(self.latest, sign), [channels[k] for k in new])
            for node, k in enumerate(new, start):
                self.known[groups[k]] = node
                self.found.parents[node] = groups[k]
        return np.array([self.known[group] for group in groups])

    def mixed(self, labels: np.ndarray | None, axes: Sequence[int]) -> np.ndarray:
        """The labels of what comes from all places along these axes together."""
        assert labels is not None
        axes = tuple(a for a in axes if labels.shape[a] > 1)
        if not axes:
            return labels
        rest = tuple(a for a in range(labels.ndim) if a not in axes)
        rows = labels.transpose(*rest, *axes).reshape(math.prod(labels.shape[a] for a in rest), -1)
        groups = [tuple(np.unique(row[row >= 0]).tolist()) for row in rows]
        result = np.array([group[0] if group else -1 for group in groups])
        several = [k for k, group in enumerate(groups) if len(group) > 1]
        if several:
            result[several] = self.junction("all", [groups[k] for k in several], list(range(len(several))))
        return result.reshape([1 if a in axes else n for a, n in enumerate(labels.shape)])


Rule = Callable[[Walk, Mapping[str, Any], list, list, tuple[int, ...]], "np.ndarray | None"]


def _spread(labels: np.ndarray, shape: Sequence[int], axes: Sequence[int]) -> np.ndarray:
    """Labels with their full length along the given axes."""
    return np.broadcast_to(labels, [shape[a] if a in axes else n for a, n in enumerate(labels.shape)])


def _squeezed(labels: np.ndarray) -> np.ndarray:
    """Length 1 along every axis where all are alike."""
    for a in range(labels.ndim):
        first = labels.take([0], axis=a)
        if labels.shape[a] > 1 and (labels == first).all():
            labels = first
    return labels


def _split(params, labels: list) -> list[np.ndarray]:
    (part,), a = labels, params["axis"]
    if part.shape[a] == 1:
        return [part] * len(params["sizes"])
    return np.split(part, np.cumsum(params["sizes"])[:-1], axis=a)


def _broadcast(walk, params, labels, shapes, result):
    (part,), to = labels[:1], params["broadcast_dimensions"]
    shape = [1] * len(result)
    for n, a in zip(part.shape, to, strict=True):
        shape[a] = n
    return part.reshape(shape)


def _reshape(walk, params, labels, shapes, result):
    return _squeezed(np.broadcast_to(labels[0], shapes[0]).reshape(result))


def _transpose(walk, params, labels, shapes, result):
    return labels[0].transpose(params["permutation"])


def _squeeze(walk, params, labels, shapes, result):
    return np.squeeze(walk.mixed(labels[0], params["dimensions"]), tuple(params["dimensions"]))


def _expand(walk, params, labels, shapes, result):
    return np.expand_dims(labels[0], params["dimensions"])


def _slice(walk, params, labels, shapes, result):
    steps = params["strides"] or [1] * len(result)
    ends = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    cuts = [slice(*end) if n > 1 else slice(None) for n, end in zip(labels[0].shape, ends, strict=True)]
    return labels[0][tuple(cuts)]


def _rev(walk, params, labels, shapes, result):
    return np.flip(labels[0], params["dimensions"])


def _pad(walk, params, labels, shapes, result):
    part = labels[0]
    for a, (low, high, inner) in enumerate(params["padding_config"]):
        if part.shape[a] == 1 and shapes[0][a] > 1:
            continue  # along an axis where all are alike, what is put at the ends does not count
        if (low, high, inner) == (0, 0, 0):
            continue
        index = np.arange(result[a]) - low
        inside = (index >= 0) & (index % (inner + 1) == 0) & (index // (inner + 1) < shapes[0][a])
        taken = part.take(np.where(inside, index // (inner + 1), 0), axis=a)
        shape = [1] * part.ndim
        shape[a] = -1
        part = np.where(inside.reshape(shape), taken, -1)
    return part


def _concatenate(walk, params, labels, shapes, result):
    a = params["dimension"]
    parts = [np.full((1,) * len(result), -1) if part is None else part for part in labels]
    parts = [_spread(part, shape, (a,)) for part, shape in zip(parts, shapes, strict=True)]
    common = np.broadcast_shapes(*[(*part.shape[:a], 1, *part.shape[a + 1 :]) for part in parts])
    parts = [np.broadcast_to(part, (*common[:a], part.shape[a], *common[a + 1 :])) for part in parts]
    return _squeezed(np.concatenate(parts, axis=a))


def _stack(walk, params, labels, shapes, result):
    a = params["axis"]
    parts = [None if part is None else np.expand_dims(part, a) for part in labels]
    shapes = [(*shape[:a], 1, *shape[a:]) for shape in shapes]
    return _concatenate(walk, {"dimension": a}, parts, shapes, result)


def _dot(walk, params, labels, shapes, result):
    """A product that is no layer's, such as pooling by a matrix: what is summed over is mixed."""
    (contracted, batched), parts = params["dimension_numbers"], []
    for side, part in enumerate(labels):
        if part is None:
            continue
        part = walk.mixed(part, contracted[side])
        rest = [a for a in range(part.ndim) if a not in (*contracted[side], *batched[side])]
        other = len(shapes[1 - side]) - len(contracted[1 - side]) - len(batched[1 - side])
        sizes = [part.shape[a] for a in batched[side]]
        free = [part.shape[a] for a in rest]
        order = (*batched[side], *rest, *contracted[side])
        shape = (*sizes, *free, *[1] * other) if side == 0 else (*sizes, *[1] * other, *free)
        parts.append(part.transpose(order).reshape(shape))
    return walk.joined("×", parts, len(result))


def _conv(walk, params, labels, shapes, result):
    """A convolution that is no layer's: it mixes the channels of a group."""
    part, numbers = labels[0], params["dimension_numbers"]
    if part is None:
        return np.full((1,) * len(result), walk.mixed(labels[1].reshape(-1), (0,)).item())
    channel = numbers.lhs_spec[1]
    part = walk.mixed(part, [a for a in range(part.ndim) if a != channel]).reshape(-1)
    groups = params["feature_group_count"]
    each = walk.mixed(np.broadcast_to(part, shapes[0][channel]).reshape(groups, -1), (1,)).reshape(-1)
    shape = [1] * len(result)
    shape[numbers.out_spec[1]] = -1
    found = np.repeat(each, result[numbers.out_spec[1]] // groups).reshape(shape)
    if not walk.strict or labels[1] is None:
        return found
    return walk.joined("×", [found, walk.mixed(labels[1].reshape(-1), (0,)).reshape((1,) * len(result))], len(result))


RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "expand_dims": _expand,
    "slice": _slice,
    "rev": _rev,
    "pad": _pad,
    "concatenate": _concatenate,
    "stack": _stack,
    "dot_general": _dot,
    "conv_general_dilated": _conv,
}
