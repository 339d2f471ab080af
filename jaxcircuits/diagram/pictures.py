"""The pictures that nodes carry: what a first layer's filter looks like, and the patches that drive a channel most.

Patches are those of the circuit, not of the full network. All layers are looked at in one pass over the images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from jaxcircuits.circuit import Circuit
from jaxcircuits.data import count as count_images
from jaxcircuits.data import image_shape
from jaxcircuits.diagram.blocks import INPUT
from jaxcircuits.diagram.graph import Graph
from jaxcircuits.features import Features
from jaxcircuits.model import Model
from jaxcircuits.pictures.circuits import in_circuit
from jaxcircuits.pictures.patches import strongest
from jaxcircuits.receptive import ReceptiveField

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
        for key, patches in top_patches(model, circuit, channels, images, count, size).items():
            strips.setdefault(key, []).extend(patches)
    said = []
    if images is not None:
        said.append(f"the patches of {_images(images)} that drive a channel of this circuit most, one of an image")
    if filters:
        said.append("in the first layer the channel's filter" + (" before them" if images is not None else ""))
    pictures = {key: np.concatenate([_square(image, size) for image in strip], 1) for key, strip in strips.items()}
    return pictures, f"Pictures: {'; '.join(said)}." if said else ""


def feature_patches(model: Model, circuit: Circuit, images, *, count: int, size: int) -> np.ndarray:
    """A strip of what drives the circuit's feature most, at its position: (size, squares * size, 3) uint8."""
    feature = circuit.manifest["feature"]
    layer, channel = feature["layer"], feature.get("channel", -1)
    patches = top_patches(model, circuit, {layer: [channel]}, images, count, size)[layer, channel]
    return np.concatenate(patches, 1)


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
    model: Model,
    circuit: Circuit,
    channels: Mapping[str, Sequence[int]],
    images,
    count: int,
    size: int | None = None,
) -> dict[tuple[str, int], Sequence[np.ndarray]]:
    """What the strongest positions of channels see in the images that drive them most, one position an image.

    Args:
        model: whose circuit it is.
        circuit: whose masks and offsets apply.
        channels: {layer: those asked for}; -1 in the feature's layer is its direction. The feature itself is looked at
            in its position.
        images: as for `node_pictures`.
        count: patches of each.
        size: of a square; None: as many pixels as it has.
    """
    feature = circuit.features
    own = feature.layer, -1 if feature.channels is None else feature.channels[0]
    groups, keys = [], []
    for layer, some in channels.items():
        if rest := [c for c in some if (layer, c) != own]:
            groups.append(Features(layer, channels=rest))
            keys.append([(layer, c) for c in rest])
        if len(rest) < len(some):
            groups.append(feature)
            keys.append([own])

    def cut(image: np.ndarray, field: ReceptiveField, h: int, w: int) -> np.ndarray:
        patch = _cut(image, field, h, w)
        return patch if size is None else _square(patch, size)

    network = model.network(image_shape(images))
    within = in_circuit(network, model.variables, circuit.masks, circuit.offsets, None)
    found = strongest(model, images, [(groups, within)], count=count, cut=cut, batch=BATCH, whole=True)
    each = zip(keys, found, strict=True)
    return {key: patches for some, best in each for key, patches in zip(some, best.pictures, strict=True)}


def _cut(image: np.ndarray, field: ReceptiveField, h: int, w: int) -> np.ndarray:
    """What position (h, w) sees of an image, made square by what lies around or, at an edge, by the edge."""
    rows, columns = field.box(h, w)
    side = max(rows.stop - rows.start, columns.stop - columns.start)
    tall, wide = (min(side, length) for length in image.shape[:2])
    top = int(np.clip((rows.start + rows.stop - tall) // 2, 0, image.shape[0] - tall))
    left = int(np.clip((columns.start + columns.stop - wide) // 2, 0, image.shape[1] - wide))
    return image[top : top + tall, left : left + wide]
