"""The pictures that nodes carry: what a first layer's filter looks like, and the patches that drive a channel most.

Patches are those of the circuit, not of the full network. All layers are looked at in one pass over the images.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from jaxcircuits.circuit import Circuit
from jaxcircuits.data import batches
from jaxcircuits.data import count as count_images
from jaxcircuits.diagram.blocks import INPUT
from jaxcircuits.diagram.graph import Graph
from jaxcircuits.layers import Arrays, Variables
from jaxcircuits.masked import outputs
from jaxcircuits.model import Model
from jaxcircuits.receptive import ReceptiveField, fields
from jaxcircuits.taps import Network, with_masks

SIZE, COUNT, BATCH = 56, 4, 8


def node_pictures(
    model: Model, circuit: Circuit, graph: Graph, images=None, *, count: int = COUNT, size: int = SIZE
) -> tuple[dict[tuple[str, int], np.ndarray], str]:
    """A strip of squares for each channel of the graph, and a sentence that says what they are.

    Args:
        model: whose circuit it is.
        circuit: in which the channels are looked at.
        graph: whose nodes get pictures.
        images: (n, H, W, 3) normalised, in blocks or as an array; None: only filters of the first layer.
        count: patches of each channel.
        size: of a square, in pixels.

    Returns:
        {(layer, channel): (size, squares * size, 3) uint8}.
    """
    channels: dict[str, list[int]] = {}
    for block, channel in graph.nodes:
        name, kind, _ = graph.blocks[block]
        if kind == "direction" or (kind == "layer" and channel >= 0):
            channels.setdefault(name, []).append(channel)
    filters = _filters(model, graph)
    strips: dict[tuple[str, int], list[np.ndarray]] = {key: [image] for key, image in filters.items()}
    if images is not None and model.channels == 3 and channels:
        for key, patches in top_patches(model, circuit, channels, images, count).items():
            strips.setdefault(key, []).extend(patches)
    said = []
    if images is not None:
        said.append(f"the patches of {_images(images)} that drive a channel of this circuit most, one of an image")
    if filters:
        said.append("in the first layer the channel's filter" + (" before them" if images is not None else ""))
    pictures = {key: np.concatenate([_square(image, size) for image in strip], 1) for key, strip in strips.items()}
    return pictures, f"Pictures: {'; '.join(said)}." if said else ""


def feature_patches(model: Model, circuit: Circuit, images, *, count: int, size: int) -> np.ndarray:
    """A strip of what drives the circuit's feature most, anywhere in the images: (size, squares * size, 3) uint8."""
    feature = circuit.manifest["feature"]
    layer, channel = feature["layer"], feature.get("channel", -1)
    patches = top_patches(model, circuit, {layer: [channel]}, images, count)[layer, channel]
    return np.concatenate([_square(patch, size) for patch in patches], 1)


def _images(images) -> str:
    return f"{count_images(images)} images ({getattr(images, 'source', 'array')})"


def _square(image: np.ndarray, size: int) -> np.ndarray:
    small = image.shape[0] < size
    return np.asarray(
        Image.fromarray(image).resize((size, size), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
    )


def _filters(model: Model, graph: Graph) -> dict[tuple[str, int], np.ndarray]:
    """The filters of layers that see three colours, from each one's least weight to its largest."""
    found = {}
    pixels = [node for node in range(len(graph.nodes)) if graph.block(node).kind == INPUT]
    for name in sorted({edge.layer for edge in graph.edges if edge.source in pixels}):
        layer = model.layers[name]
        if layer.inputs != 3 or min(layer.window) < 3:
            continue
        w = np.asarray(layer.weight(model.variables)).reshape(*layer.window, 3, layer.outputs)
        low, high = w.min((0, 1, 2)), w.max((0, 1, 2))
        grey = np.round(255 * (w - low) / np.maximum(high - low, 1e-12)).astype(np.uint8)
        found |= {(name, o): np.ascontiguousarray(grey[..., o]) for o in range(layer.outputs)}
    return found


def top_patches(
    model: Model, circuit: Circuit, channels: Mapping[str, Sequence[int]], images, count: int
) -> dict[tuple[str, int], list[np.ndarray]]:
    """What the strongest positions of channels see in the images that drive them most, one position an image.

    Args:
        model: whose circuit it is.
        circuit: whose masks and offsets apply.
        channels: {layer: those asked for}; -1 in the feature's layer is its direction.
        images: as for `node_pictures`.
        count: patches of each.
    """
    values: dict[str, list[np.ndarray]] = {name: [] for name in channels}
    places: dict[str, list[np.ndarray]] = {name: [] for name in channels}
    network, target = None, circuit.manifest["feature"]["layer"]
    direction = None if circuit.direction is None else jnp.asarray(circuit.direction)
    for block, real in batches(images, BATCH):
        if network is None:
            network = model.network(block.shape[1:])
            variables = with_masks(network, model.variables, circuit.masks)
            offsets = {name: jnp.asarray(offset) for name, offset in (circuit.offsets or {}).items()}
        found = _maxima(network, tuple(channels), target, variables, offsets, direction, jnp.asarray(block))
        for name, (value, place) in found.items():
            values[name].append(np.asarray(value)[:real])
            places[name].append(np.asarray(place)[:real])
    if network is None:
        return {}
    seen = fields(network, model.variables)
    wanted: dict[int, list[tuple[str, int, int, int]]] = {}
    for name, chosen in channels.items():
        value, place = np.concatenate(values[name]), np.concatenate(places[name])
        best = np.argsort(-value, axis=0, kind="stable")[:count]
        for c in chosen:
            for k, n in enumerate(best[:, c]):
                wanted.setdefault(int(n), []).append((name, c, k, int(place[n, c])))
    patches: dict[tuple[str, int], list] = {}
    start = 0
    for block, real in batches(images, BATCH):
        for n in range(start, start + real):
            for name, c, k, place in wanted.get(n, ()):
                patch = _cut(block[n - start], seen[name], *divmod(place, network.layers[name].positions[1]))
                patches.setdefault((name, c), []).append((k, np.clip(_pixels(model, patch), 0, 255).astype(np.uint8)))
        start += real
    return {key: [patch for _, patch in sorted(some, key=lambda pair: pair[0])] for key, some in patches.items()}


@functools.partial(jax.jit, static_argnames=("network", "names", "target"))
def _maxima(
    network: Network,
    names: tuple[str, ...],
    target: str,
    variables: Variables,
    offsets: Arrays,
    direction: Array | None,
    images: Array,
) -> dict[str, tuple[Array, Array]]:
    """{layer: the largest value of each image's channels, and where it is: (N, O) both}; a direction comes last."""
    probes = {
        name: jnp.broadcast_to(offset, (len(images), *network.layers[name].positions, network.layers[name].outputs))
        for name, offset in offsets.items()
    }
    inputs, found = network.run(variables, images, probes), {}
    for name in names:
        maps = outputs(network.layers[name], variables, inputs[name])
        maps = maps.reshape(len(images), -1, maps.shape[-1])
        if name == target and direction is not None:
            maps = jnp.concatenate([maps, maps @ direction[:, None]], -1)
        found[name] = maps.max(1), maps.argmax(1)
    return found


def _pixels(model: Model, patch: np.ndarray) -> np.ndarray:
    return np.round(255 * (patch * np.asarray(model.std) + np.asarray(model.mean)))


def _cut(image: np.ndarray, field: ReceptiveField, h: int, w: int) -> np.ndarray:
    """What position (h, w) sees of an image, made square by what lies around or, at an edge, by the edge."""
    rows, columns = field.box(h, w)
    side = max(rows.stop - rows.start, columns.stop - columns.start)
    tall, wide = (min(side, length) for length in image.shape[:2])
    top = int(np.clip((rows.start + rows.stop - tall) // 2, 0, image.shape[0] - tall))
    left = int(np.clip((columns.start + columns.stop - wide) // 2, 0, image.shape[1] - wide))
    return image[top : top + tall, left : left + wide]
