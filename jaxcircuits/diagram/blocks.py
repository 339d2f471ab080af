"""A network as nodes: channels of layers, and the junctions where values are added, multiplied or mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

INPUT = "input"


class Block(NamedTuple):
    """Nodes that are drawn together.

    Attributes:
        name: the layer's, "input", or the latest layer before a junction.
        kind: "input", "layer", or what a junction does: "+", "×", or "all" where channels are mixed without a layer.
        whole: whether the block is one node that stands for all channels, because the layer is not scored.
    """

    name: str
    kind: str
    whole: bool = False


@dataclass
class Connections:
    """The network as nodes.

    Attributes:
        blocks: in the order in which they run.
        nodes: (block, channel) of each node.
        parents: {node of a junction: the nodes that it joins}.
        sources: {layer: (C,) the node that each of its input channels comes from, -1 for none}.
        first: {layer: its channel 0's node; channel c is that plus c, unless its block is whole}.
    """

    blocks: list[Block] = field(default_factory=list)
    nodes: list[tuple[int, int]] = field(default_factory=list)
    parents: dict[int, tuple[int, ...]] = field(default_factory=dict)
    sources: dict[str, np.ndarray] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)

    def begin(self, block: Block, channels: Sequence[int]) -> int:
        """A new block with these channels as its nodes; the first of them."""
        start, place = len(self.nodes), len(self.blocks)
        self.blocks.append(block)
        self.nodes += [(place, int(c)) for c in channels]
        return start

    def node(self, layer: str, channel: int) -> int:
        first = self.first[layer]
        return first if self.blocks[self.nodes[first][0]].whole else first + channel
