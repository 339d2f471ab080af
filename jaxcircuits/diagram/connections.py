"""How channels get from layer to layer, read from the network's own operations and not from names.

A walk through the network's jaxpr carries, for every value, a label at each of its places: the node that it comes from.
A layer's output is a node for each channel (its probe marks it), whatever works channel by channel passes labels on,
concatenation and shuffling move them, and where two values of different nodes are added or multiplied a junction
begins: a node of its own. Normalisations are left out, as the pinned run leaves them out.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxcircuits.diagram.blocks import INPUT, Block, Connections
from jaxcircuits.diagram.walk import Value, Walk
from jaxcircuits.layers import Variables
from jaxcircuits.taps import Network


def connections(network: Network, variables: Variables, scored: Sequence[str], *, strict: bool = False) -> Connections:
    """What is connected to what.

    Args:
        network: whose layers they are.
        variables: of its module; only shapes are used.
        scored: the layers whose kernels are asked about; every other one is a single node, through which its whole
            input reaches its whole output.
        strict: follow normalisations and divisors as well, so that nothing else changes what a layer sees.
    """
    names = tuple(name for name, layer in network.layers.items() if not layer.trouble)
    image = jax.ShapeDtypeStruct((1, *network.image_shape), jnp.float32)
    probes = jax.eval_shape(lambda: network.probes(names, 1))

    def run(variables, image, probes):
        return network.run(variables, image, probes, pinned=not strict)

    closed, shapes = jax.make_jaxpr(run, return_shape=True)(variables, image, probes)
    walk = Walk(Connections(), strict)
    marks = _marks(network, names, variables)
    inputs = image.shape[-1]
    start = walk.found.begin(Block(INPUT, INPUT), range(inputs))
    pixels = Value((start + np.arange(inputs)).reshape(1, 1, 1, -1))
    given = [*marks, pixels, *(Value(layer=name) for name in sorted(names))]  # jaxprs take dictionaries sorted
    walk.begins = {name: (network.layers[name].outputs, name not in scored) for name in names}
    out = walk.run(closed.jaxpr, given)
    for name, value in zip(sorted(shapes), out, strict=True):
        if value.labels is not None:
            places = tuple(range(value.labels.ndim - 1))
            channels = walk.mixed(value.labels, places).reshape(-1)
            walk.found.sources[name] = np.broadcast_to(channels, network.layers[name].input_maps[2])
    return walk.found


def _marks(network: Network, names: Sequence[str], variables: Variables) -> list[Value]:
    """The variables' leaves: which of them are kernels of layers."""
    kernels = {(*network.layers[name].path, "kernel") for name in names}
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
    return [Value(kernel=tuple(part.key for part in path[1:]) in kernels) for path, _ in leaves]
