"""What is asked of many circuits at once: who uses a kernel, what is shared, which circuits are alike."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxcircuits.atlas import overlaps, store
from jaxcircuits.atlas.store import Chunk
from jaxcircuits.errors import InputError, nearest
from jaxcircuits.packages import needed

if TYPE_CHECKING:
    import pandas

    from jaxcircuits.atlas.reading import Atlas


class Part(NamedTuple):
    """A chunk that is there, at one level.

    Attributes:
        labels: of its F features.
        layer: theirs.
        bits: {layer: (F, bytes)}, packed masks.
        chunk: the chunk. k: the level.
    """

    labels: tuple[str, ...]
    layer: str
    bits: dict[str, np.ndarray]
    chunk: Chunk
    k: int


def parts(atlas: Atlas, k: int, layer: str | None = None) -> Iterator[Part]:
    """The chunks that are there, of one layer's features or of all, at level k."""
    groups = range(len(atlas.plan.groups)) if layer is None else [g for g, _ in atlas.of_layer(layer)]
    for g in groups:
        for which in atlas.there(g):
            chunk, features = atlas.chunk(which), atlas.plan.features(which)
            bits = {name: packed[:, k] for name, packed in chunk.masks.items()}
            yield Part(features.labels, features.layer, bits, chunk, k)


def users(atlas: Atlas, k: int, layer: str, output: int, input: int | None) -> pandas.DataFrame:
    """The features that use a kernel or a channel's kernels: feature, layer, kernels, correlation; most kernels first.

    Args:
        atlas, k: at which level.
        layer, output: whose channel it is.
        input: of the kernel; all that make the channel if None.
    """
    pandas = needed("pandas", "a table")

    outputs, inputs = _shape(atlas, layer)
    for name, value, most in (("output", output, outputs), ("input", input or 0, inputs)):
        if not (isinstance(value, (int, np.integer)) and 0 <= value < most):
            raise InputError(f"{layer!r} has no {name} channel {value!r}; they are 0 to {most - 1}")
    rows = []
    for part in parts(atlas, k):
        if layer not in part.bits:
            continue
        masks = store.unpacked(part.bits[layer], (outputs, inputs))[:, output]
        counts = masks.sum(1) if input is None else masks[:, input].astype(int)
        for f in np.flatnonzero(counts):
            row = {"feature": part.labels[f], "layer": part.layer, "kernels": int(counts[f])}
            rows.append(row | {"correlation": float(part.chunk.correlation[f, k])})
    found = pandas.DataFrame(rows, columns=["feature", "layer", "kernels", "correlation"])
    return found.sort_values("kernels", ascending=False, kind="stable", ignore_index=True)


def usage(atlas: Atlas, k: int, layer: str) -> tuple[np.ndarray, int]:
    """How many circuits have each kernel of a layer (O, I), and how many could."""
    shape = _shape(atlas, layer)
    counts, features = np.zeros(shape, np.int64), 0
    for part in parts(atlas, k):
        if layer in part.bits:
            counts += overlaps.use_counts(part.bits[layer], shape)
            features += len(part.labels)
    return counts, features


def sharing(atlas: Atlas, k: int, layer: str) -> pandas.DataFrame:
    """The kernels of a layer by how many features use them, most shared first: output, input, users, share."""
    pandas = needed("pandas", "a table")

    counts, features = usage(atlas, k, layer)
    order = np.argsort(-counts, axis=None, kind="stable")
    outputs, inputs = np.unravel_index(order, counts.shape)
    used = counts.ravel()[order]
    return pandas.DataFrame({"output": outputs, "input": inputs, "users": used, "share": used / max(features, 1)})


def iou_matrix(atlas: Atlas, k: int, layer: str | None) -> pandas.DataFrame:
    """The overlap of each two circuits, of a layer's features or of all."""
    pandas = needed("pandas", "a table")

    labels: list[str] = []
    rows: dict[str, list[np.ndarray]] = {}
    bits: dict[str, list[np.ndarray]] = {}
    for part in parts(atlas, k, layer):
        numbers = np.arange(len(labels), len(labels) + len(part.labels))
        labels += part.labels
        for name, packed in part.bits.items():
            rows.setdefault(name, []).append(numbers)
            bits.setdefault(name, []).append(packed.copy())  # without the other levels
    masks = ((np.concatenate(rows[name]), np.concatenate(bits[name])) for name in bits)
    found = overlaps.iou_of(overlaps.intersections(masks, len(labels)))
    return pandas.DataFrame(found, index=labels, columns=labels)


def near(atlas: Atlas, k: int, feature: str, layer: str | None) -> pandas.DataFrame:
    """All circuits by their overlap with one, the nearest first: feature, layer, iou, shared, kept."""
    pandas = needed("pandas", "a table")

    which, f = atlas.find(feature)
    one = {name: bits[f, k] for name, bits in atlas.chunk(which).masks.items()}
    own = sum(int(np.bitwise_count(bits).sum()) for bits in one.values())
    columns: dict[str, list] = {"feature": [], "layer": [], "iou": [], "shared": [], "kept": []}
    for part in parts(atlas, k, layer):
        shared, kept = overlaps.against(one, part.bits)
        columns["feature"] += part.labels
        columns["layer"] += [part.layer] * len(part.labels)
        for name, values in (("iou", shared / (own + kept - shared)), ("shared", shared), ("kept", kept)):
            columns[name] += values.tolist()
    found = pandas.DataFrame(columns)
    found = found[found["feature"] != feature]
    return found.sort_values("iou", ascending=False, kind="stable", ignore_index=True)


def clusters(atlas: Atlas, k: int, layer: str | None, number: int | None, overlap: float | None) -> pandas.DataFrame:
    """Features whose circuits are alike: feature, cluster (0, 1, ... by falling size), size, iou (mean, within)."""
    pandas = needed("pandas", "a table")
    hierarchy = needed("scipy.cluster.hierarchy", "a clustering")
    distance = needed("scipy.spatial.distance", "a clustering")

    if (number is None) == (overlap is None):
        raise InputError("give either number, of clusters, or overlap, that of the circuits in one")
    matrix = iou_matrix(atlas, k, layer)
    values = np.nan_to_num(matrix.to_numpy(copy=True), nan=0.0)
    np.fill_diagonal(values, 1.0)
    if len(values) < 2:
        found = np.ones(len(values), int)
    else:
        tree = hierarchy.linkage(distance.squareform(1 - values, checks=False), "average")
        how = (
            {"t": 1 - overlap, "criterion": "distance"}
            if overlap is not None
            else {"t": number, "criterion": "maxclust"}
        )
        found = hierarchy.fcluster(tree, **how)
    names, first, which, sizes = np.unique(found, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -sizes))
    rank = np.empty(len(names), int)
    rank[order] = np.arange(len(names))
    inside = which[:, None] == which
    inside[np.diag_indices(len(inside))] = False
    within = np.divide((values * inside).sum(1), inside.sum(1), out=np.full(len(values), np.nan), where=inside.any(1))
    columns = {"feature": matrix.index, "cluster": rank[which], "size": sizes[which], "iou": within}
    return pandas.DataFrame(columns).sort_values("cluster", kind="stable", ignore_index=True)


def statistics(atlas: Atlas) -> pandas.DataFrame:
    """A row for each layer of features and each level: how faithful, how large, how much of the network is used.

    Columns: layer, keep (or kernels), features, mean, low, median and high of r (10th, 50th, 90th percentile; constant
    circuits have none), constant (how many), kept and effective (means), used (the share of all kernels of the
    layers scored that at least one circuit has).
    """
    pandas = needed("pandas", "a table")

    name = next(iter(atlas.plan.amounts[0]))
    rows = []
    for layer in atlas.layers:
        found: dict[str, list[np.ndarray]] = {"correlation": [], "kept": [], "effective": []}
        together: dict[str, np.ndarray] = {}
        for part in parts(atlas, 0, layer):  # once for all levels, for its masks and scores may be large
            for which, values in found.items():
                values.append(getattr(part.chunk, which))
            for scored, packed in part.chunk.masks.items():
                any_of = np.bitwise_or.reduce(packed, axis=0)
                together[scored] = together[scored] | any_of if scored in together else any_of
        if not together:
            continue
        used = _used(atlas, together)
        every = [np.concatenate(values) for values in found.values()]
        for k, amount in enumerate(atlas.amounts):
            r, kept, effective = (values[:, k] for values in every)
            defined = r[np.isfinite(r)]
            low, median, high = np.percentile(defined, [10, 50, 90]) if len(defined) else [np.nan] * 3
            numbers = {"mean": defined.mean() if len(defined) else np.nan, "low": low, "median": median, "high": high}
            row = {"layer": layer, name: amount, "features": len(r), **numbers, "constant": len(r) - len(defined)}
            rows.append(row | {"kept": kept.mean(), "effective": effective.mean(), "used": used[k]})
    return pandas.DataFrame(rows)


def _used(atlas: Atlas, together: dict[str, np.ndarray]) -> np.ndarray:
    """The share of these layers' kernels that any circuit has, of what all have together {layer: (K, bytes)}: (K,)."""
    used = sum(np.bitwise_count(bits).sum(-1, dtype=np.int64) for bits in together.values())
    return np.asarray(used) / sum(math.prod(atlas.shapes[layer]) for layer in together)


def _shape(atlas: Atlas, layer: str) -> tuple[int, int]:
    if layer not in atlas.shapes:
        raise InputError(f"the atlas has no kernels of {layer!r}; {nearest(layer, atlas.shapes)}")
    return atlas.shapes[layer]
