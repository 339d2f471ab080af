"""A circuit as a graph: channels are nodes, kept kernels are edges, and what is on a path to the feature is drawn.

An edge is excitatory when its kernel's weights sum to more than zero. What it adds to its output then has that sign
wherever its input is alike all over the window and not negative, as it is behind a ReLU; on pixels, whose values have
both signs, it is the answer to more of that colour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxcircuits.circuit import Circuit
from jaxcircuits.diagram.blocks import INPUT, Block, Connections
from jaxcircuits.diagram.connections import connections
from jaxcircuits.errors import InputError
from jaxcircuits.layers import Layer
from jaxcircuits.model import Model

MOST = 2000  # kernels that are drawn


class Edge(NamedTuple):
    """One kernel.

    Attributes:
        source, target: nodes.
        layer: whose kernel it is.
        i, o: its input channel (within its group) and its output channel.
        score: None where the circuit holds no scores.
        weights: (h, w).
    """

    source: int
    target: int
    layer: str
    i: int
    o: int
    score: float | None
    weights: np.ndarray

    @property
    def total(self) -> float:
        """The sum of its weights, whose sign is the edge's."""
        return float(self.weights.sum(dtype=np.float64))


@dataclass(frozen=True, eq=False)
class Graph:
    """What can be drawn of a circuit.

    Attributes:
        blocks: those that hold nodes, in the order in which they run.
        depths: (B,) the column of each.
        nodes: (block, channel) of each node; channel -1 stands for all of a layer that is not scored, or a direction.
        edges: kernels on a path, the best first: the first k of them are those of the k best kernels.
        ranks: (E,) how many kernels are better than each, the ones on no path included.
        links: (source, target) of nodes that are passed on without a kernel: to a junction, a direction.
        feature: its node.
        kept: kernels of the circuit.
        most: kernels that the edges were taken from; more than are kept where there are scores.
        relevant: kernels from which a path leads to the feature.
        scored: whether the edges have scores, and smaller and larger circuits can be told from them.
        cut: whether the circuit keeps more than `most`.
        channels: of the images; three are red, green and blue.
    """

    blocks: tuple[Block, ...]
    depths: np.ndarray
    nodes: tuple[tuple[int, int], ...]
    edges: tuple[Edge, ...]
    ranks: np.ndarray
    links: tuple[tuple[int, int], ...]
    feature: int
    kept: int
    most: int
    relevant: int
    scored: bool
    cut: bool
    channels: int

    def block(self, node: int) -> Block:
        return self.blocks[self.nodes[node][0]]

    def within(self, kernels: int) -> Flow:
        """The effective circuit of so many kernels."""
        count = int(np.searchsorted(self.ranks, kernels))
        pairs = [(e.source, e.target) for e in self.edges[:count]]
        inputs = [n for n in range(len(self.nodes)) if self.block(n).kind == INPUT]
        return flow([*pairs, *self.links], count, inputs, self.feature, len(self.nodes))


class Flow(NamedTuple):
    """Which edges (the first ones), links and nodes lie on a path from the pixels to the feature: bool arrays."""

    edges: np.ndarray
    links: np.ndarray
    nodes: np.ndarray


def flow(pairs, count: int, inputs, feature: int, nodes: int) -> Flow:
    """Follow paths through pairs (source, target) of nodes, of which a source always has the lower number.

    Args:
        pairs: P of them, the first `count` edges and then links.
        inputs: the nodes where paths begin.
        feature: the node where they end.
        nodes: how many there are.
    """
    source, target = np.asarray(pairs, int).reshape(-1, 2).T
    reached, reaching = np.zeros(nodes, bool), np.zeros(nodes, bool)
    reached[list(inputs)] = reaching[feature] = True
    for p in np.argsort(target, kind="stable"):
        reached[target[p]] |= reached[source[p]]
    for p in np.argsort(-source, kind="stable"):
        reaching[source[p]] |= reaching[target[p]]
    on = reached[source] & reaching[target]
    there = reached & reaching
    there[feature] = True
    return Flow(on[:count], on[count:], there)


def graph(model: Model, circuit: Circuit, *, most: int = MOST) -> Graph:
    """What can be drawn of a circuit.

    Args:
        model: whose circuit it is.
        circuit: with scores, if it is to be drawn denser and sparser than it is.
        most: kernels that are drawn at the most, the best of them. Without scores the best have the largest weights.

    Raises:
        InputError: the circuit is of another network, or `most` is not a number above zero.
    """
    if most < 1:
        raise InputError(f"{most} kernels were asked for at the most; expected one or more")
    layers = _layers(model, circuit)
    weights = {name: _weights(layer, model) for name, layer in layers.items()}
    network = model.network()
    found = connections(network, model.variables, tuple(circuit.masks))
    best = ranking(circuit, weights)
    kept = sum(int(mask.sum()) for mask in circuit.masks.values())
    edges, ranks = [], []
    kernels = zip(best.layers[:most].tolist(), best.i[:most].tolist(), best.o[:most].tolist(), strict=True)
    for rank, (layer, i, o) in enumerate(kernels):
        name = best.names[layer]
        channel = o // (layers[name].outputs // layers[name].groups) * layers[name].inputs + i
        if name not in found.sources or (source := int(found.sources[name][channel])) < 0:
            continue
        score = float(circuit.scores[name][i, o]) if best.scored and circuit.scores else None
        edges.append(Edge(source, found.node(name, o), name, i, o, score, weights[name][i, o]))
        ranks.append(rank)
    links = [(parent, node) for node, parents in found.parents.items() for parent in parents]
    for name, node in found.first.items():
        if found.blocks[found.nodes[node][0]].whole:
            links += [(int(source), node) for source in np.unique(found.sources.get(name, [])) if source >= 0]
    feature = _feature(circuit, found, links)
    drawn = Graph(
        tuple(found.blocks),
        np.zeros(len(found.blocks), int),
        tuple(found.nodes),
        tuple(edges),
        np.array(ranks, int),
        tuple(links),
        feature,
        kept,
        min(most, len(best.o)),
        int(circuit.manifest["relevant"]),
        best.scored,
        kept > most,
        network.image_shape[-1],
    )
    return _without_the_rest(drawn)


def _layers(model: Model, circuit: Circuit) -> dict[str, Layer]:
    """The circuit's layers as the network has them."""
    there = model.layers
    for name, mask in circuit.masks.items():
        expected = (there[name].inputs, there[name].outputs) if name in there else None
        if mask.shape != expected:
            what = f"its mask of {name!r} is {mask.shape}, the layer {expected}" if expected else f"no layer {name!r}"
            raise InputError(f"the circuit is not one of {model.name}'s: {what}")
    circuit.features.resolve(there, places=False)
    return {name: there[name] for name in circuit.masks}


def _weights(layer: Layer, model: Model) -> np.ndarray:
    """(I, O, h, w)."""
    w = np.asarray(layer.weight(model.variables))
    return w.reshape(*layer.window, layer.inputs, layer.outputs).transpose(2, 3, 0, 1)


class Ranking(NamedTuple):
    """Kernels, the best first.

    Attributes:
        names: the layers.
        layers, i, o: (R,) each: which of the layers, input channel within its group, output channel.
        scored: whether the circuit's scores rank them; those that are not kept are there then, too.
    """

    names: tuple[str, ...]
    layers: np.ndarray
    i: np.ndarray
    o: np.ndarray
    scored: bool

    def masks(self, circuit: Circuit, kernels: int) -> dict[str, np.ndarray]:
        """The circuit of so many kernels: {layer: (I, O) bool}."""
        masks = {name: np.zeros(mask.shape, bool) for name, mask in circuit.masks.items()}
        for k, name in enumerate(self.names):
            here = self.layers[:kernels] == k
            masks[name][self.i[:kernels][here], self.o[:kernels][here]] = True
        return masks


def ranking(circuit: Circuit, weights: Mapping[str, np.ndarray] | None = None) -> Ranking:
    """All kernels that have a score; or those of the circuit where its scores are not stored or do not rank it.

    Args:
        circuit: whose kernels they are.
        weights: {layer: (I, O, h, w)}, by whose means of absolute values kernels without scores are ranked.
    """
    names = tuple(circuit.masks)
    flat = lambda arrays: np.concatenate([arrays[n].T.ravel() for n in names])  # noqa: E731
    mask = flat(circuit.masks)
    layers = np.concatenate([np.full(circuit.masks[n].size, k) for k, n in enumerate(names)])
    places = [np.indices(circuit.masks[n].T.shape).reshape(2, -1) for n in names]
    o, i = np.concatenate(places, 1)
    order = np.nonzero(mask)[0]
    if scored := circuit.scores is not None and set(circuit.scores) == set(names):
        values = flat(circuit.scores).astype(np.float64)
        # in ties a kept kernel comes first, then layer, o, i, as in `top_kernels`
        every = np.lexsort((~mask, -values))
        every = every[mask[every] | (values[every] != 0)]
        if scored := bool(mask[every[: mask.sum()]].all()):
            order = every
    if not scored and weights is not None:
        size = flat({n: np.abs(weights[n]).mean((2, 3)) for n in names})
        order = order[np.argsort(-size[order], kind="stable")]
    return Ranking(names, layers[order], i[order], o[order], scored)


def _feature(circuit: Circuit, found: Connections, links: list[tuple[int, int]]) -> int:
    """The feature's node: its channel's, or one that joins the channels of its direction."""
    target = circuit.manifest["feature"]["layer"]
    if circuit.direction is None:
        return found.node(target, circuit.manifest["feature"]["channel"])
    node = found.begin(Block(target, "direction"), [-1])
    links += [
        (source, node) for source in sorted({found.node(target, int(c)) for c in np.nonzero(circuit.direction)[0]})
    ]
    return node


def _without_the_rest(whole: Graph) -> Graph:
    """Only what is on a path with all edges, and the columns that this takes."""
    there = whole.within(whole.most)
    blocks = sorted({whole.nodes[n][0] for n in np.nonzero(there.nodes)[0]})
    place = {block: k for k, block in enumerate(blocks)}
    nodes = np.nonzero(there.nodes)[0]
    new = {int(n): k for k, n in enumerate(nodes)}
    edges = [e._replace(source=new[e.source], target=new[e.target])
             for e, on in zip(whole.edges, there.edges, strict=True) if on]  # fmt: skip
    links = [(new[a], new[b]) for (a, b), on in zip(whole.links, there.links, strict=True) if on]
    of = {k: (place[whole.nodes[n][0]], whole.nodes[n][1]) for k, n in enumerate(nodes)}
    steps = {(of[a][0], of[b][0]) for a, b in [*((e.source, e.target) for e in edges), *links]}
    depths = np.zeros(len(blocks), int)
    for a, b in sorted(steps, key=lambda step: step[1]):
        depths[b] = max(depths[b], depths[a] + 1)
    return Graph(
        tuple(whole.blocks[b] for b in blocks),
        depths,
        tuple(of[k] for k in range(len(nodes))),
        tuple(edges),
        whole.ranks[there.edges],
        tuple(links),
        new[whole.feature],
        whole.kept,
        whole.most,
        whole.relevant,
        whole.scored,
        whole.cut,
        whole.channels,
    )
