"""The diagram as a figure for papers: SVG, PNG or PDF, drawn by matplotlib at the circuit's own level."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from jaxcircuits.diagram.blocks import INPUT
from jaxcircuits.diagram.graph import Graph
from jaxcircuits.diagram.layout import HEADER, Row, gap, layout, margin, shrunk
from jaxcircuits.diagram.page import Pictures

MORE, LESS, NEUTRAL, INK, SOFT, PANEL = "#d55e00", "#0072b2", "#9aa2ad", "#14181f", "#555d69", "#f6f7f9"
ACCENT, PIXELS = "#009e73", ("#d1495b", "#4a9d5b", "#4472c4")
UNITS = 110.0  # of the layout, to an inch
MANY = 300  # more lines than that are drawn thinner and fainter
NARROW = 9.0  # nodes below this size carry no number
STYLE: Any = {"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "jaxcircuits", "font.family": ["DejaVu Sans"]}


def figure(
    graph: Graph, columns: list[list[Row]], order: np.ndarray, pictures: Pictures, *, title: str, kind: str
) -> bytes:
    """Draw the circuit as it was saved.

    Args:
        graph, columns, order: as for the page.
        pictures: {(layer, channel): (h, w, 3) uint8}; of a wide one the first square is shown.
        title: under the drawing.
        kind: "svg", "png" or "pdf".
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    flow = graph.within(min(graph.kept, graph.most))
    placed = layout(graph, columns, order, flow)
    names = {block: _name(graph, block) for block in placed.tops}
    step, ends = gap(columns), (columns[0], columns[-1])
    first, last = (margin([names[row.block] for row in column if row.block in names], step) for column in ends)
    left, right, top, bottom = -first, placed.width + last, -30.0, placed.height + 44
    size = ((right - left) / UNITS, (bottom - top) / UNITS)
    with rc_context(STYLE):
        drawing = Figure(figsize=size, dpi=150)
        axes = drawing.add_axes((0, 0, 1, 1))
        axes.set(xlim=(left, right), ylim=(bottom, top))
        axes.set_axis_off()
        _draw_edges(axes, graph, placed, flow)
        for node, centre in placed.centres.items():
            _draw_node(axes, graph, node, centre, placed.sizes[node], pictures)
        for block, (x, y) in placed.tops.items():
            kind_of, font = graph.blocks[block].kind, {"fontsize": 8 * shrunk(names[block], step), "weight": "bold"}
            axes.text(x, y + HEADER * 0.36, names[block], ha="center", color=INK, parse_math=False, **font)
            count = placed.counts[block]
            number = "direction" if kind_of == "direction" else f"{count} channel{'s' if count > 1 else ''}"
            if kind_of == "layer":
                axes.text(x, y + HEADER * 0.76, number, ha="center", fontsize=6.5, color=SOFT)
        axes.text(left + 12, bottom - 12, title, fontsize=7, color=SOFT, parse_math=False)
        _draw_key(axes, right - 12, bottom - 12)
        stream = io.BytesIO()
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        drawing.savefig(stream, format=kind, metadata=metadata, facecolor="white")
    return stream.getvalue()


def _name(graph: Graph, block: int) -> str:
    """What stands over a block."""
    name, kind, _ = graph.blocks[block]
    return {INPUT: "image", "layer": name, "direction": name}.get(kind, kind)


def _draw_edges(axes, graph: Graph, placed, flow) -> None:
    """Links lowest, then kernels, the best on top."""
    from matplotlib.collections import PathCollection
    from matplotlib.colors import to_rgba
    from matplotlib.path import Path

    shown = [k for k in range(len(flow.edges)) if flow.edges[k]][::-1]
    dense = float(np.clip(np.sqrt(MANY / max(len(shown), 1)), 0.4, 1))
    best = max([abs(e.score) for e in graph.edges if e.score is not None], default=0.0) or 1.0
    lines = [(pair, NEUTRAL, 0.7, 0.4) for pair, on in zip(graph.links, flow.links, strict=True) if on]
    for k in shown:
        e = graph.edges[k]
        strength = 0.35 if e.score is None else np.sqrt(abs(e.score) / best)
        colour = MORE if e.total > 0 else LESS if e.total < 0 else NEUTRAL
        opacity = (0.25 + 0.65 * strength) * (0.3 + 0.7 * dense)
        lines.append(((e.source, e.target), colour, max(0.3, (0.3 + 3.0 * strength) * dense), opacity))
    paths = []
    for pair, *_ in lines:
        points = placed.curves[pair]
        paths.append(Path(points, [Path.MOVETO, *[Path.CURVE4] * (len(points) - 1)]))
    colours = [to_rgba(colour, opacity) for _, colour, _, opacity in lines]
    widths = [width for _, _, width, _ in lines]
    if paths:
        axes.add_collection(
            PathCollection(paths, facecolors="none", edgecolors=colours, linewidths=widths, capstyle="round", zorder=1),
            autolim=False,
        )


def _draw_node(axes, graph: Graph, node: int, centre, size: float, pictures: Pictures) -> None:
    from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

    block, channel = graph.nodes[node]
    name, kind, _ = graph.blocks[block]
    x, y, half = *centre, size / 2
    feature = node == graph.feature
    edge = {"edgecolor": ACCENT if feature else SOFT, "linewidth": 1.6 if feature else 0.4, "zorder": 3}
    number = str(channel) if channel >= 0 else "all" if kind == "layer" else ""
    image = pictures.get((name, channel)) if kind == "layer" else None
    bold = {"color": INK, "zorder": 4}
    if image is not None:
        image, extent = image[:, : image.shape[0]], (x - half, x + half, y + half, y - half)
        axes.imshow(image, extent=extent, aspect="auto", zorder=2, interpolation="none")
        axes.add_patch(Rectangle((x - half, y - half), size, size, facecolor="none", **edge))
        if size > NARROW:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.3, "alpha": 0.75}
            axes.text(x - half, y - half + 0.24 * size, number, fontsize=0.13 * size, bbox=box, **bold)
        return
    if kind in ("layer", "direction"):
        style = f"round,pad=0,rounding_size={0.1 * size}"
        axes.add_patch(FancyBboxPatch((x - half, y - half), size, size, boxstyle=style, facecolor=PANEL, **edge))
    else:
        colours = kind == INPUT and graph.channels == 3
        number = "RGB"[channel] if colours else number if kind == INPUT else kind
        bold["color"] = "white" if colours else INK
        fill = PIXELS[channel] if colours else "#e3e6eb"
        axes.add_patch(Circle((x, y), half, facecolor=fill, **{**edge, "linewidth": 0.2}))
    if size > NARROW:
        axes.text(x, y, number, fontsize=0.19 * size, weight="bold", ha="center", va="center", **bold)


def _draw_key(axes, right: float, y: float) -> None:
    for words, colour, x in (("excitatory", MORE, right - 190), ("inhibitory", LESS, right - 90)):
        axes.plot([x, x + 22], [y - 3, y - 3], color=colour, linewidth=2, solid_capstyle="round")
        axes.text(x + 28, y, words, fontsize=7, color=SOFT)
