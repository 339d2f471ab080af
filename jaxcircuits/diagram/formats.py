"""The circuit's graph for other programs: GraphML and JSON, both through networkx."""

from __future__ import annotations

import io
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
    flow = graph.within(min(graph.kept, graph.most))
    found = _networkx().MultiDiGraph(model=printable(circuit.manifest["model"]), feature=_name(graph, graph.feature))
    for node, (block, channel) in enumerate(graph.nodes):
        if flow.nodes[node]:
            name, kind, _ = graph.blocks[block]
            found.add_node(_name(graph, node), layer=name, channel=channel, kind=kind, depth=int(graph.depths[block]))
    for e, on in zip(graph.edges, flow.edges, strict=False):  # those of other levels come behind
        if not on:
            continue
        values = {"kind": "kernel", "layer": e.layer, "i": e.i, "o": e.o, "sum": e.total}
        values |= {} if e.score is None else {"score": e.score}
        values |= {"weights": e.weights.tolist()} if weights else {}
        found.add_edge(_name(graph, e.source), _name(graph, e.target), **values)
    for (a, b), on in zip(graph.links, flow.links, strict=True):
        if on:
            found.add_edge(_name(graph, a), _name(graph, b), kind="link")
    return found


def _name(graph: Graph, node: int) -> str:
    """`features.3:17`, `input:0`, `layer1.0.conv2+:5`; without a number, what stands for all channels."""
    block, channel = graph.nodes[node]
    name, kind, _ = graph.blocks[block]
    sign = kind if kind not in ("input", "layer") else ""
    return f"{name}{sign}:{'*' if channel < 0 else channel}"


def _networkx():
    return needed("networkx", "a graph")
