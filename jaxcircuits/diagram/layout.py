"""Where a graph's nodes and edges stand: columns by depth, blocks under each other, few crossings.

`rows` and `orders` do not depend on how much is kept; `layout` places what is there at one level. The page's script,
diagram.js, places by the same rules.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxcircuits.diagram.blocks import INPUT
from jaxcircuits.diagram.graph import Flow, Graph

WIDTH, HEIGHT = 1200.0, 860.0  # of all columns, if that leaves a gap between them that is neither small nor large
GAPS = 190.0, 400.0
PITCH, FILL = 52.0, 0.86  # the largest distance of nodes, and how much of it a node takes
SMALL, SIDE = 32.0, 4  # below this distance nodes stand side by side, at most so many
HEADER, CORRIDOR, BETWEEN = 34.0, 22.0, 16.0  # heights: over a block, of passing edges, between rows
FIXED = 0.7  # of the height these take at the most; in a column of many rows they are lower
LETTER, MARGIN = 7.9, 80.0  # widths: of a letter of a name over a block, and left and right of everything
SWEEPS = 12


class Row(NamedTuple):
    """A part of a column: a block, or a corridor through which edges pass from one block to another one.

    Attributes:
        block: the block; of a corridor the one that its edges come from.
        to: the block that a corridor's edges go to; None for a block.
    """

    block: int
    to: int | None = None


def rows(graph: Graph) -> list[list[Row]]:
    """For each column what stands in it, from top to bottom: a block is near what it comes from."""
    steps = {(graph.nodes[a][0], graph.nodes[b][0]) for a, b in _pairs(graph)}
    heights = np.zeros(len(graph.blocks))
    columns: list[list[Row]] = []
    for depth in range(int(graph.depths.max(initial=0)) + 1):
        here = []
        for block in np.nonzero(graph.depths == depth)[0]:
            before = [heights[a] for a, b in steps if b == block]
            here.append((float(np.mean(before)) if before else 0.5, 1, int(block), Row(int(block))))
        for a, b in sorted(steps):
            if graph.depths[a] < depth < graph.depths[b]:
                here.append((float(heights[a]), 0, a, Row(a, b)))
        here.sort(key=lambda row: row[:3])
        for k, (_, _, block, row) in enumerate(here):
            if row.to is None:
                heights[block] = (k + 0.5) / len(here)
        columns.append([row for *_, row in here])
    return columns


def _pairs(graph: Graph) -> list[tuple[int, int]]:
    return [*((e.source, e.target) for e in graph.edges), *graph.links]


def orders(graph: Graph, columns: Sequence[Sequence[Row]]) -> np.ndarray:
    """(nodes,) the place of each in its block, by the weighted barycentres of its neighbours, swept to and fro."""
    count = len(graph.nodes)
    block = np.array([b for b, _ in graph.nodes])
    source, target = np.array(_pairs(graph), int).reshape(-1, 2).T
    strength = np.array([1.0 if e.score is None else abs(e.score) ** 0.5 for e in graph.edges])
    weight = np.concatenate([strength, np.full(len(graph.links), strength.mean() if len(strength) else 1.0)])
    members = [[np.nonzero(block == row.block)[0] for row in column if row.to is None] for column in columns]
    height = np.zeros(count)
    for column in members:
        _stand(column, height)
    best, found = np.inf, height.copy()
    for sweep in range(SWEEPS):
        forward = sweep % 2 == 0
        of, to = (source, target) if forward else (target, source)
        for column in members if forward else members[::-1]:
            pulled = np.bincount(to, weight * height[of], count)
            total = np.bincount(to, weight, count)
            wanted = np.where(total > 0, pulled / np.where(total > 0, total, 1), height)
            _stand([nodes[np.argsort(wanted[nodes], kind="stable")] for nodes in column], height)
        length = float((weight * np.abs(height[source] - height[target])).sum())
        if length < best:
            best, found = length, height.copy()
    found[[n for n in range(count) if graph.block(n).kind == INPUT]] = 0  # red, green, blue
    order = np.zeros(count, int)
    for column in members:
        for nodes in column:
            order[nodes[np.argsort(found[nodes], kind="stable")]] = np.arange(len(nodes))
    return order


def gap(columns: Sequence[object]) -> float:
    """From column to column."""
    return float(np.clip(WIDTH / max(len(columns) - 1, 1), *GAPS))


def shrunk(name: str, step: float) -> float:
    """How much smaller a name must be so as not to reach into the next column."""
    return min(1.0, (step - 8) / (LETTER * len(name)))


def margin(names: Sequence[str], step: float) -> float:
    """Beside the first or the last column, over whose blocks these names stand."""
    return max([MARGIN, *(LETTER * len(name) * shrunk(name, step) / 2 + 8 for name in names)])


def _stand(column: Sequence[np.ndarray], height: np.ndarray) -> None:
    """Give the nodes of a column, in this order, heights from 0 to 1."""
    nodes = np.concatenate([*column, np.zeros(0, int)])
    height[nodes] = (np.arange(len(nodes)) + 0.5) / max(len(nodes), 1)


@dataclass(frozen=True)
class Layout:
    """One level's places, in points.

    Attributes:
        width, height: of everything.
        centres: {node: (x, y)}.
        sizes: {node: the side of its picture}.
        tops: {block: (x, y)} of the headers' baselines.
        counts: {block: how many of its nodes are there}.
        curves: {(source, target): points (3 n + 1, 2) of a chain of cubic curves}.
    """

    width: float
    height: float
    centres: dict[int, tuple[float, float]]
    sizes: dict[int, float]
    tops: dict[int, tuple[float, float]]
    counts: dict[int, int]
    curves: dict[tuple[int, int], np.ndarray]


def layout(graph: Graph, columns: Sequence[Sequence[Row]], order: np.ndarray, flow: Flow) -> Layout:
    """Place the nodes and edges of a level."""
    there = [
        p for p, on in zip(_pairs(graph), np.concatenate([_all(flow.edges, graph), flow.links]), strict=True) if on
    ]
    nodes: dict[int, list[int]] = {}
    for node in sorted(np.nonzero(flow.nodes)[0].tolist(), key=lambda n: order[n]):
        nodes.setdefault(graph.nodes[node][0], []).append(node)
    passing = {(graph.nodes[a][0], graph.nodes[b][0]) for a, b in there}
    centres, sizes, tops, corridors, step = {}, {}, {}, {}, gap(columns)
    for depth, column in enumerate(columns):
        x = depth * step
        shown = [row for row in column if (row.block in nodes if row.to is None else tuple(row) in passing)]
        gaps = max(len(shown) - 1, 1)
        fixed = sum(HEADER if row.to is None else CORRIDOR for row in shown) + BETWEEN * (len(shown) - 1)
        low = min(1.0, FIXED * HEIGHT / max(fixed, 1))
        header, corridor, between, fixed = (low * height for height in (HEADER, CORRIDOR, BETWEEN, fixed))
        total = sum(len(nodes[row.block]) for row in shown if row.to is None)
        beside, size, pitch = _sizes(fixed, total)
        over = min(max(0.0, size - pitch), (HEIGHT - fixed) / (2 * gaps))  # bricks are higher than their share
        fixed += over * (len(shown) - 1)
        beside, size, pitch = _sizes(fixed, total)
        y = (HEIGHT - fixed - total * pitch) / 2
        for row in shown:
            if row.to is not None:
                corridors[depth, row.block, row.to] = y + corridor / 2, corridor
                y += corridor + between + over
                continue
            tops[row.block] = (x, y - max(0.0, size - pitch) / 2)
            y += header
            for k, node in enumerate(nodes[row.block]):
                # side by side like bricks: every node has a height of its own
                centres[node] = (x + (k % beside - (beside - 1) / 2) * size * 1.2, y + pitch / 2)
                sizes[node] = size
                y += pitch
            y += between + over
    within = {n: (k + 0.5) / len(group) - 0.5 for group in nodes.values() for k, n in enumerate(group)}
    curves = {}
    for a, b in there:
        (ba, _), (bb, _) = graph.nodes[a], graph.nodes[b]
        points = [(centres[a][0] + sizes[a] / 2, centres[a][1])]
        for depth in range(graph.depths[ba] + 1, graph.depths[bb]):
            middle, height = corridors[depth, ba, bb]
            y = middle + within[a] * height
            points += [(depth * step - PITCH, y), (depth * step + PITCH, y)]
        points.append((centres[b][0] - sizes[b] / 2, centres[b][1]))
        curves[a, b] = _chain(points)
    width = step * (len(columns) - 1)
    return Layout(width, HEIGHT, centres, sizes, tops, {b: len(group) for b, group in nodes.items()}, curves)


def _sizes(fixed: float, total: int) -> tuple[int, float, float]:
    """Of a column's nodes: how many stand side by side, their size and distance."""
    pitch = min(PITCH, (HEIGHT - fixed) / max(total, 1))
    beside = int(np.clip(np.ceil(SMALL / pitch), 1, SIDE))
    return beside, min(pitch * beside, PITCH) * FILL, pitch


def _all(some: np.ndarray, graph: Graph) -> np.ndarray:
    """Which of all edges are there, from which of the first ones are."""
    return np.concatenate([some, np.zeros(len(graph.edges) - len(some), bool)])


def _chain(points: Sequence[tuple[float, float]]) -> np.ndarray:
    """Cubic curves through points, which leave and arrive horizontally."""
    chain = [points[0]]
    for (x, y), (u, v) in itertools.pairwise(points):
        bend = (u - x) * 0.45
        chain += [(x + bend, y), (u - bend, v), (u, v)]
    return np.array(chain)
