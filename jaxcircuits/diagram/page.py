"""The diagram as an HTML page: what its script needs of a graph, as small as it can be."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcircuits.circuit import Circuit, feature_label
from jaxcircuits.diagram.blocks import INPUT
from jaxcircuits.diagram.graph import Graph
from jaxcircuits.diagram.layout import Row
from jaxcircuits.pages import data_uri, render

PACKAGE = "jaxcircuits.diagram"
SCRIPTS = ("layout.js", "diagram.js")
STYLES = ("diagram.css",)
Pictures = Mapping[tuple[str, int], np.ndarray]


def page(contents: dict[str, Any], circuit: Circuit) -> str:
    """One diagram that fills a page; its contents are those of `contents`."""
    return render(
        "diagram.html",
        package=PACKAGE,
        title=f"{circuit.manifest['model']} · {feature_label(circuit.manifest)}",
        styles=STYLES,
        scripts=(*SCRIPTS, "one.js"),
        data=contents,
        summary=summary(circuit),
    )


def summary(circuit: Circuit) -> str:
    """What the circuit is, in a line."""
    manifest, r = circuit.manifest, circuit.manifest["correlation"]
    amount = f"{manifest['kernels']} kernels" if manifest["keep"] is None else f"keep {manifest['keep']:g}"
    return f"{manifest['criterion']}, {amount}, " + ("constant" if r is None else f"r = {r:.3f}")


def contents(
    graph: Graph, columns: list[list[Row]], order: np.ndarray, circuit: Circuit, pictures: Pictures, said: str
) -> dict[str, Any]:
    """What diagram.js draws.

    Args:
        graph: the circuit's.
        columns, order: as `rows` and `orders` give them.
        circuit: of which the sentence about scores is told.
        pictures: {(layer, channel): (h, w, 3) uint8}; of a wide one the first square is the node's, all are shown when
            the pointer is there.
        said: what the pictures are.
    """
    depths = graph.depths.tolist()
    used = {edge.layer for edge in graph.edges}
    names = [block.name for block in graph.blocks if block.kind == "layer" and block.name in used]
    nodes = []
    for node, (block, channel) in enumerate(graph.nodes):
        name, kind, _ = graph.blocks[block]
        image = pictures.get((name, channel)) if kind in (INPUT, "layer", "direction") else None
        nodes.append([block, channel, int(order[node]), None if image is None else data_uri(image)])
    edges = graph.edges
    return {
        "label": feature_label(circuit.manifest),
        "blocks": [[*block, depth] for block, depth in zip(graph.blocks, depths, strict=True)],
        "columns": [[[row.block, row.to] for row in column] for column in columns],
        "nodes": nodes,
        "links": [list(link) for link in graph.links],
        "layers": [[name, *_kernels(graph, name)] for name in names],
        "edges": {
            "source": [e.source for e in edges],
            "target": [e.target for e in edges],
            "layer": [names.index(e.layer) for e in edges],
            "i": [e.i for e in edges],
            "o": [e.o for e in edges],
            "score": [None if e.score is None else float(f"{e.score:.4g}") for e in edges],
            "total": [float(f"{e.total:.4g}") for e in edges],
            "largest": [float(f"{np.abs(e.weights).max():.4g}") for e in edges],
            "rank": graph.ranks.tolist(),
        },
        "feature": graph.feature,
        "kept": graph.kept,
        "most": graph.most,
        "relevant": graph.relevant,
        "scored": graph.scored,
        "cut": graph.cut,
        "channels": graph.channels,
        "why": why(graph, circuit),
        "said": said,
    }


def why(graph: Graph, circuit: Circuit) -> str:
    """What is to be known of the levels."""
    if graph.scored:
        criterion = circuit.manifest["criterion"]
        own = f"; other levels rank by the scores of this one, which is not what {criterion} would keep there"
        return f"at most the {graph.most:,} best kernels are drawn" + (own if criterion in ("force", "learned") else "")
    reason = (
        "its scores do not rank its kernels" if circuit.scores else "the circuit was saved without scores (--scores)"
    )
    cut = f"; the {graph.most:,} kernels with the largest weights are drawn" if graph.cut else ""
    return f"{reason}, so that this is the only level{cut}"


def _kernels(graph: Graph, name: str) -> tuple[int, int, str]:
    """Height and width of a layer's kernels and their weights in the order of the edges, each as bytes from -127 to 127
    times its largest, in base64."""
    weights = np.stack([e.weights for e in graph.edges if e.layer == name])
    largest = np.abs(weights).max((1, 2), keepdims=True)
    small = np.round(127 * weights / np.where(largest > 0, largest, 1)).astype(np.int8)
    return weights.shape[1], weights.shape[2], base64.b64encode(small.tobytes()).decode()
