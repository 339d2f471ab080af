"""Drawings of circuits.

graph.py makes a graph of a circuit, with connections.py and walk.py, which read from the network what is connected to
what; layout.py says where everything stands; page.py, figure.py and formats.py write it; pictures.py has what nodes
carry.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxcircuits.circuit import Circuit, feature_label
from jaxcircuits.diagram.figure import figure
from jaxcircuits.diagram.formats import graphml, node_link
from jaxcircuits.diagram.graph import MOST, Graph, graph
from jaxcircuits.diagram.layout import Row, orders, rows
from jaxcircuits.diagram.page import contents, page, summary
from jaxcircuits.diagram.pictures import COUNT, MADE, check_kind, node_pictures
from jaxcircuits.errors import InputError
from jaxcircuits.files import write_whole
from jaxcircuits.model import Model
from jaxcircuits.packages import needed
from weights_conversion.errors import printable

FORMATS = ("html", "svg", "png", "pdf", "graphml", "json")
NEEDED = {"html": ("jinja2", "a page"), "graphml": ("networkx", "GraphML"), "json": ("networkx", "JSON")}


def check_format(kind: str) -> None:
    """Raise an InputError if a diagram cannot be written so, or the package that this needs is not installed."""
    if kind not in FORMATS:
        raise InputError(f"a diagram cannot be written as {kind!r}; expected one of {', '.join(FORMATS)}")
    if kind in NEEDED:
        needed(*NEEDED[kind])


@dataclass(frozen=True, eq=False)
class Diagram:
    """A circuit, ready to be drawn.

    Attributes:
        circuit: what is drawn.
        graph: its nodes and edges.
        columns, order: where they stand.
        pictures: {(layer, channel): (h, w, 3) uint8}, of the nodes.
        said: what the pictures are.
    """

    circuit: Circuit
    graph: Graph
    columns: list[list[Row]]
    order: np.ndarray
    pictures: Mapping[tuple[str, int], np.ndarray]
    said: str

    @property
    def contents(self) -> dict[str, Any]:
        """What the page's script draws."""
        return contents(self.graph, self.columns, self.order, self.circuit, self.pictures, self.said)

    def to(self, kind: str) -> bytes:
        """The diagram as "html", "svg", "png", "pdf", "graphml" or "json".

        Raises:
            InputError: another format, or one whose packages are not installed.
        """
        check_format(kind)
        if kind == "html":
            return page(self.contents, self.circuit).encode()
        if kind in ("svg", "png", "pdf"):
            title = f"{self.circuit.manifest['model']} {feature_label(self.circuit.manifest)}: {summary(self.circuit)}"
            title = printable(title)  # XML has no control characters
            return figure(self.graph, self.columns, self.order, self.pictures, title=title, kind=kind)
        return {"graphml": graphml, "json": node_link}[kind](self.graph, self.circuit)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the diagram to a file, in the format that its ending says, whole or not at all.

        Raises:
            InputError: the ending is none of the formats, or the file cannot be written.
        """
        write_whole(Path(path), self.to(Path(path).suffix.lower().removeprefix(".")))


def diagram(
    model: Model,
    circuit: Circuit,
    images=None,
    *,
    most: int = MOST,
    pictures: str | Mapping[tuple[str, int], np.ndarray] = "patches",
    patches: int = COUNT,
    made: int = MADE,
) -> Diagram:
    """Draw a circuit: channels are nodes, kernels on a path to the feature are edges.

    Args:
        model: whose circuit it is.
        circuit: with scores (`extract(..., with_scores=True)`), if its page is to show other levels than its own.
        images: as for `score`, for patches; None: there are none.
        most: kernels that are drawn at the most.
        pictures: what nodes carry: "patches", the parts of the images that drive the channel in the circuit most;
            "features", pictures that drive it there, made as by `visualise`, and then patches; "none"; or
            {(layer, channel): (h, w, 3) uint8}. Of a wide one the node shows the first square, the page all of them
            when the pointer is there. In the first layer the channel's filter comes first.
        patches: of each channel.
        made: channels for which "features" makes pictures, those that the best kernels lead to.

    Returns:
        A `Diagram`, which `.save(path)` writes as .html, .svg, .png, .pdf, .graphml or .json.

    Raises:
        InputError: the circuit is of another network, unknown pictures, or `most` or `made` is below 1.
    """
    if isinstance(pictures, str):
        check_kind(pictures, made)
    found = graph(model, circuit, most=most)
    columns = rows(found)
    said = "Pictures: as given."
    if isinstance(pictures, str):
        pictures, said = node_pictures(model, circuit, found, images, kind=pictures, count=patches, made=made)
    return Diagram(circuit, found, columns, orders(found, columns), pictures, said)
