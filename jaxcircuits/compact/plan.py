"""Which channels of each layer a circuit's feature needs, and the layers' weights without all others.

A channel is *fixed* if no path leads to it from the pixels: its value does not depend on the image, and one run of the
network shows it. It is *wanted* if a path leads from it to the feature. Paths are the network's own
(`diagram.connections`): kernels that are kept and not zero, and whatever passes values on between layers.

A fixed output that is the same everywhere loses its kernels and keeps its value as bias. A fixed input that is zero
everywhere is left out; so is one that is the same everywhere, if the layer pads nothing: what it adds to each output
goes into the bias. All else that is wanted stays. (The mean of a fixed map that differs at its border is one number,
but another for images of another size: such a one stays.)
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcircuits.ablation import check_offsets
from jaxcircuits.circuit import Circuit
from jaxcircuits.diagram.blocks import INPUT, Connections
from jaxcircuits.diagram.connections import connections
from jaxcircuits.layers import Layer, Masks, Variables
from jaxcircuits.masks import check_masks
from jaxcircuits.model import Model
from jaxcircuits.ops import convolve
from jaxcircuits.taps import Network
from jaxcircuits.variables import with_masks

SAME = 1e-6  # of its largest value, by which what is the same everywhere may differ for rounding


class Slice(NamedTuple):
    """What is left of a layer.

    Attributes:
        layer: the whole one; of the feature's own, as if the feature were its one output, of all input channels.
        wanted: the input channels that it needs.
        reads: those that its kernels have, as many in each group; zeros do for those that are not wanted.
        gives: its output channels, as many in each group.
        groups: into which they are divided.
        kernel: (h, w, inputs of a group, outputs).
        bias: (outputs,) or None.
    """

    layer: Layer
    wanted: np.ndarray
    reads: np.ndarray
    gives: np.ndarray
    groups: int
    kernel: np.ndarray
    bias: np.ndarray | None


class Seen(NamedTuple):
    """The least and largest value of each channel of a layer's input (C,) and output (O,), over positions."""

    least_in: np.ndarray
    most_in: np.ndarray
    least_out: np.ndarray
    most_out: np.ndarray


class Plan(NamedTuple):
    """What is left of a network.

    Attributes:
        slices: {layer: what is left}, in call order; layers without a wanted channel are not there.
        target: the feature's layer, the last one.
        layers: of the whole network, those that are called once.
        variables: of the whole network, masks multiplied in.
    """

    slices: dict[str, Slice]
    target: str
    layers: dict[str, Layer]
    variables: Variables


def plan(model: Model, circuit: Circuit) -> Plan:
    """Which layers and channels a circuit needs.

    Raises:
        InputError: the circuit is of another network, or weights are missing.
    """
    network = model.network()
    features = circuit.features.resolve(network.layers, places=False)
    target = features.layer
    given = {name: mask[None] for name, mask in circuit.masks.items()}
    check_masks(network.layers, given)
    if circuit.offsets is not None:
        check_offsets(network.layers, {name: a[None] for name, a in circuit.offsets.items()}, given)
    names = list(network.layers)
    names = [n for n in names[: names.index(target) + 1] if not network.layers[n].trouble]
    model.check_weights(names)
    masked = with_masks(network, model.variables, {n: jnp.asarray(m) for n, m in circuit.masks.items()})
    offsets = {n: jnp.asarray(a) for n, a in (circuit.offsets or {}).items() if n in names}
    paths = _Paths(connections(network, model.variables, tuple(network.layers), strict=True), network)
    kernels = {name: np.asarray(network.layers[name].weight(masked)) for name in names}
    kept = {name: (kernel != 0).any(0) for name, kernel in kernels.items()}
    moves = paths.forward(True, np.any, lambda name, x: name in kept and _any(network.layers[name], kept[name], x))
    image = jnp.zeros((1, *network.image_shape))  # not a constant, or XLA computes with it for minutes
    seen = _observed(network, tuple(names), masked, image, offsets)
    observed = {name: Seen(*map(np.asarray, found)) for name, found in seen.items()}

    def is_even(name: str, even: np.ndarray) -> Any:
        """Which outputs are the same everywhere; a map of one position shows it only of what it is made of."""
        if name not in kept:
            return False
        layer, same = network.layers[name], _same(observed[name].least_out, observed[name].most_out)
        return same & ~_any(layer, kept[name], ~even) if layer.positions == (1, 1) else same

    even = paths.forward(False, np.all, is_even)
    slices: dict[str, Slice] = {}

    def what_it_reads(name: str, wanted: np.ndarray) -> np.ndarray:
        """The input channels that these outputs (O,) of a layer need; notes what is left of the layer."""
        layer, kernel = network.layers[name], kernels[name]
        bias = np.asarray(layer.bias(masked) + offsets.get(name, 0))
        if name == target:
            layer, kernel, bias = _feature(layer, kernel, bias, features.matrix(layer.outputs)[0])
            wanted, fixed = np.ones(1, bool), np.zeros(1, bool)
        else:
            fixed = (even & ~moves)[paths.nodes(name)]
        sources = paths.sources(name)
        slices[name] = _slice(layer, kernel, bias, wanted, fixed, moves[sources], even[sources], observed[name])
        return slices[name].wanted

    paths.to_feature(target, what_it_reads)
    left = {name: slices[name] for name in names if name in slices}
    return Plan(left, target, {name: la for name, la in network.layers.items() if not la.trouble}, masked)


class _Paths:
    """Ways through a network's nodes, layer by layer."""

    def __init__(self, found: Connections, network: Network):
        self.found, self.layers = found, network.layers
        self.ends = np.searchsorted([block for block, _ in found.nodes], np.arange(len(found.blocks)), side="right")

    def blocks(self) -> list[tuple[str, str, np.ndarray]]:
        """Name, kind and nodes of each block, in the order in which they run."""
        ends = itertools.pairwise((0, *self.ends))
        return [(b.name, b.kind, np.arange(*here)) for b, here in zip(self.found.blocks, ends, strict=True)]

    def nodes(self, layer: str) -> np.ndarray:
        """Of a layer's output channels."""
        return self.found.first[layer] + np.arange(self.layers[layer].outputs)

    def sources(self, layer: str) -> np.ndarray:
        """Of a layer's input channels; the last node stands for none."""
        none = np.full(self.layers[layer].input_maps[2], -1)
        return self.found.sources.get(layer, none) % (len(self.found.nodes) + 1)

    def parents(self, node: int) -> list[int]:
        return list(self.found.parents.get(node, ()))

    def forward(self, pixels: bool, join: Callable[..., Any], of_layer: Callable[[str, np.ndarray], Any]) -> np.ndarray:
        """A bool for each node, from the pixels' on: joined from those of its parents where values come together, and
        for a layer's outputs (O,) made by `of_layer` of the layer's name and those of its inputs (C,)."""
        values = np.full(len(self.found.nodes) + 1, join(()))

        def joined(nodes: Iterable[int]) -> None:
            for node in nodes:
                if parents := self.parents(node):
                    values[node] = join(values[parents])

        for name, kind, nodes in self.blocks():
            if kind == INPUT:
                values[nodes] = pixels
            elif kind != "layer":
                joined(nodes)
            else:
                sources = self.sources(name)
                joined(sources[sources >= nodes[0]])  # found last: positions that come from different nodes
                values[nodes] = of_layer(name, values[sources])
        return values

    def to_feature(self, target: str, what_it_reads) -> None:
        """Calls `what_it_reads(layer, wanted outputs)` for each layer on a path to the target, from there on back."""
        wanted = np.zeros(len(self.found.nodes) + 1, bool)
        wanted[self.nodes(target)] = True
        for name, kind, nodes in reversed(self.blocks()):
            if kind != "layer":
                join = nodes[wanted[nodes]]
            elif wanted[nodes].any():
                sources = self.sources(name)[what_it_reads(name, wanted[nodes])]
                wanted[sources] = True
                join = sources[sources >= nodes[0]]  # found last, as above
            else:
                continue
            for node in join:
                wanted[self.parents(node)] = True


def _feature(layer: Layer, kernel: np.ndarray, bias: np.ndarray, direction: np.ndarray):
    """The feature's layer as if it were the one output, of all groups: layer, kernel (K, C, 1), bias (1,)."""
    apart = kernel.reshape(len(kernel), layer.inputs, layer.groups, -1)
    along = np.einsum("kigo,go->kgi", apart, direction.reshape(layer.groups, -1)).reshape(len(kernel), -1, 1)
    shape = *layer.output_shape[:-1], 1
    alone = dataclasses.replace(layer, groups=1, inputs=along.shape[1], outputs=1, output_shape=shape)
    return alone, along, bias @ direction[:, None]


def _slice(
    layer: Layer,
    kernel: np.ndarray,
    bias: np.ndarray,
    wanted: np.ndarray,
    fixed: np.ndarray,
    moving: np.ndarray,
    even: np.ndarray,
    seen: Seen,
) -> Slice:
    """What is left of a layer.

    Args:
        kernel, bias: (K, I, O) and (O,).
        wanted, fixed: (O,), which outputs are wanted, which are the same for every image and everywhere.
        moving, even: (C,), which inputs depend on the image, which do not and come from what is the same everywhere.
        seen: in one run.
    """
    groups, window = layer.groups, len(kernel)
    bias = np.where(fixed, seen.most_out[: len(fixed)], bias)
    kernel = np.where(fixed, 0, kernel).reshape(window, layer.inputs, groups, -1)
    zero = ~moving & (seen.least_in == 0) & (seen.most_in == 0)
    same = ~moving & even & _same(seen.least_in, seen.most_in) & (not np.any(layer.padding))
    values = np.where(same, seen.most_in, 0).reshape(groups, -1)
    bias = bias + np.einsum("kigo,gi->go", kernel, values, dtype=np.float64).reshape(-1)
    kernel = kernel * ~(zero | same).reshape(groups, -1).T[:, :, None]
    wanted = wanted.reshape(groups, -1)
    reads = ((kernel != 0) & wanted).any((0, 3)).T
    there = np.flatnonzero(wanted.any(1))
    inputs, outputs = (_evened(array[there]) for array in (reads, wanted))
    parts = [kernel[:, i, g][:, :, o] for g, i, o in zip(there, inputs, outputs, strict=True)]
    gives = (there[:, None] * wanted.shape[1] + outputs).reshape(-1)
    left = np.concatenate(parts, -1).astype(np.float32)
    bias = bias[gives].astype(np.float32)
    return Slice(
        layer,
        np.flatnonzero(reads),
        (there[:, None] * layer.inputs + inputs).reshape(-1),
        gives,
        len(there),
        left.reshape(*layer.window, *left.shape[1:]),
        bias if bias.any() else None,
    )


def _any(layer: Layer, kept: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Which outputs (O,) any of these inputs (C,) reaches through kept kernels (I, O)."""
    seen, kept = inputs.reshape(layer.groups, layer.inputs), kept.reshape(layer.inputs, layer.groups, -1)
    return np.einsum("igo,gi->go", kept, seen).reshape(-1)


def _same(least: np.ndarray, most: np.ndarray) -> np.ndarray:
    return most - least <= SAME * np.maximum(np.abs(most), np.abs(least))


def _evened(chosen: np.ndarray) -> np.ndarray:
    """(G, n): the chosen places of each row (G, C), in order, filled up with others to the most that a row has; of
    several rows to a multiple of four, which is faster."""
    most = max(1, int(chosen.sum(1).max()))
    if len(chosen) > 1 < most:
        most = min(-(-most // 4) * 4, chosen.shape[1])
    return np.sort(np.argsort(~chosen, axis=1, kind="stable")[:, :most], axis=1)


@functools.partial(jax.jit, static_argnames=("network", "names"))
def _observed(
    network: Network, names: Sequence[str], variables: Variables, image: Array, offsets: Masks
) -> dict[str, tuple]:
    """`Seen` of each layer in one run of the network; what does not depend on the image is so on any."""
    probes = {n: probe + offsets[n] for n, probe in network.probes(tuple(offsets), 1).items()}
    with jax.default_matmul_precision("highest"):
        inputs = network.run(variables, image, probes)
        found = {}
        for name in names:
            layer, x = network.layers[name], inputs[name]
            y = convolve(layer, x, layer.kernel(variables))
            y = y + layer.bias(variables) + offsets.get(name, 0)
            found[name] = tuple(find(a, (0, 1, 2)) for a in (x, y) for find in (jnp.min, jnp.max))
    return found
