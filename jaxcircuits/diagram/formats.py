"""The circuit's graph for other programs: GraphML and JSON, both through networkx."""

from __future__ import annotations

import io
import itertools
import json
from typing import Any

from jaxcircuits.circuit import Circuit
from jaxcircuits.diagram.graph import Graph
from jaxcircuits.packages import needed
from weights_conversion.errors import printable


def graphml(graph: Graph, circuit: Circuit) -> bytes:
    """GraphML of the circuit as it was saved: layer, channel and kind of nodes; edges without weights."""
    stream = io.BytesIO()
    _networkx().write_graphml(as_networkx(graph, circuit), stream)
    return stream.getvalue()


def node_link(graph: Graph, circuit: Circuit) -> bytes:
    """JSON that `networkx.node_link_graph(..., edges="edges")` reads, with kernels' weights and the manifest."""
    document = _networkx().node_link_data(as_networkx(graph, circuit, weights=True), edges="edges")
    document["graph"]["manifest"] = dict(circuit.manifest)
    return json.dumps(document, allow_nan=False).encode()


def as_networkx(graph: Graph, circuit: Circuit, *, weights: bool = False) -> Any:
    """A `networkx.MultiDiGraph` of the effective circuit.

    Raises:
        InputError: networkx is not installed.
    """
    flow, names = graph.within(min(graph.kept, graph.most)), _names(graph)
    found = _networkx().MultiDiGraph(model=printable(circuit.manifest["model"]), feature=names[graph.feature])
    for node, (block, channel) in enumerate(graph.nodes):
        if flow.nodes[node]:
            name, kind, _ = graph.blocks[block]
            found.add_node(names[node], layer=name, channel=channel, kind=kind, depth=int(graph.depths[block]))
    for e, on in zip(graph.edges, flow.edges, strict=False):  # those of other levels come behind
        if not on:
            continue
        values = {"kind": "kernel", "layer": e.layer, "i": e.i, "o": e.o, "sum": e.total}
        values |= {} if e.score is None else {"score": e.score}
        values |= {"weights": e.weights.tolist()} if weights else {}
        found.add_edge(names[e.source], names[e.target], **values)
    for (a, b), on in zip(graph.links, flow.links, strict=True):
        if on:
            found.add_edge(names[a], names[b], kind="link")
    return found


def _names(graph: Graph) -> list[str]:
    """`features.3:17`, `input:0`, `layer1.0.conv2+:5`, of a second such sum `layer1.0.conv2+2:5`; `*` for all channels
    of a layer that is not scored."""
    blocks: list[str] = []
    for name, kind, _ in graph.blocks:
        new = name + (kind if kind not in ("input", "layer") else "")
        blocks.append(next(one for n in itertools.count(1) if (one := new if n == 1 else f"{new}{n}") not in blocks))
    return [f"{blocks[block]}:{'*' if channel < 0 else channel}" for block, channel in graph.nodes]


def _networkx():
    return needed("networkx", "a graph")
