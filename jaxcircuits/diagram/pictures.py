"""The pictures that nodes carry: what a first layer's filter looks like, pictures made by gradient ascent, and the
patches that drive a channel most.

All of them are of the circuit, not of the full network. For patches all layers are looked at in one pass over the
images.
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
from jaxcircuits.errors import InputError
from jaxcircuits.features import Features
from jaxcircuits.model import Model
from jaxcircuits.pictures.circuits import in_circuit
from jaxcircuits.pictures.patches import strongest
from jaxcircuits.pictures.visualise import visualise
from jaxcircuits.receptive import ReceptiveField

KINDS = ("patches", "features", "none")
SIZE, COUNT, BATCH = 56, 4, 8
MADE = 64  # channels that get a picture made for them: about a minute on two cores for AlexNet's features.10


def node_pictures(
    model: Model,
    circuit: Circuit,
    graph: Graph,
    images=None,
    *,
    kind: str = "patches",
    count: int = COUNT,
    made: int = MADE,
    size: int = SIZE,
) -> tuple[dict[tuple[str, int], np.ndarray], str]:
    """A strip of squares for each channel of the graph, and a sentence that says what they are.

    Args:
        model: whose circuit it is.
        circuit: in which the channels are looked at.
        graph: whose nodes get pictures.
        images: (n, H, W, 3) normalised, in blocks or as an array; None: no patches.
        kind: "patches"; "features" for pictures made by gradient ascent before them; "none".
        count: patches of each channel.
        made: channels for which pictures are made, those with the best kernels.
        size: of a square, in pixels.

    Returns:
        {(layer, channel): (size, squares * size, 3) uint8}.

    Raises:
        InputError: another kind, or `made` is below 1.
    """
    check_kind(kind, made)
    if kind == "none":
        return {}, ""
    filters = _filters(model, graph)
    strips: dict[tuple[str, int], list[np.ndarray]] = {key: [_square(image, size)] for key, image in filters.items()}
    said = []
    if kind == "features" and model.channels == 3:
        wanted = _best_channels(circuit, graph, filters)
        moved = _made(model, circuit, wanted[:made])
        for key, picture in moved.items():
            strips.setdefault(key, []).append(_square(picture, size))
        which = f"{len(moved)} of its {len(wanted)} channel{'s' if len(wanted) > 1 else ''}"
        which += ", those with the best kernels" if len(wanted) > made else ""
        if stuck := min(made, len(wanted)) - len(moved):
            which += f" (not for {stuck} that the noise at the beginning leaves unmoved)"
        said.append(f"made by gradient ascent within this circuit for {which}")
    channels: dict[str, list[int]] = {}
    for node in range(len(graph.nodes)):
        if (key := _key(graph, node)) is not None:
            channels.setdefault(key[0], []).append(key[1])
    if images is not None and count and model.channels == 3 and channels:
        for key, patches in top_patches(model, circuit, channels, images, count, size).items():
            strips.setdefault(key, []).extend(patches)
        which = "" if kind == "patches" else "then "
        said.append(
            f"{which}the patches of {_images(images)} that drive a channel of this circuit most, one of an image"
        )
    if filters:
        said.append("in the first layer the channel's filter" + (" before them" if said else ""))
    pictures = {key: np.concatenate(strip, 1) for key, strip in strips.items()}
    return pictures, f"Pictures: {'; '.join(said)}." if said else ""


def check_kind(kind: str, made: int) -> None:
    """Raise an InputError if these are no pictures of nodes."""
    if kind not in KINDS:
        raise InputError(f"nodes have no pictures of kind {kind!r}; expected one of {', '.join(KINDS)}")
    if made < 1:
        raise InputError(f"pictures of {made} channels were asked for; expected one or more")


def _key(graph: Graph, node: int) -> tuple[str, int] | None:
    """Layer and channel of a node that can have a picture; -1 for a direction."""
    (name, kind, _), channel = graph.block(node), graph.nodes[node][1]
    return (name, channel) if kind == "direction" or (kind == "layer" and channel >= 0) else None


def _best_channels(circuit: Circuit, graph: Graph, filters: Mapping[tuple[str, int], object]) -> list[tuple[str, int]]:
    """The feature, then the circuit's other channels, as good as the best kernel that leads to each; not those whose
    filter is a picture."""
    there = graph.within(min(graph.kept, graph.most))
    nodes = [graph.feature, *(e.target for e, on in zip(graph.edges, there.edges, strict=False) if on)]
    keys = dict.fromkeys(_key(graph, node) for node in nodes)
    return [key for key in keys if key is not None and key not in filters]


def _made(model: Model, circuit: Circuit, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], np.ndarray]:
    """Pictures of channels made by gradient ascent in the circuit; `wanted` as `_best_channels` gives them.

    None of a channel that noise leaves unmoved, because all ReLUs before it stay off: its picture is grey.
    """
    layers: dict[str, list[int]] = {}
    for layer, channel in wanted:
        layers.setdefault(layer, []).append(channel)
    found = {}
    for keys, features in _groups(circuit, layers):
        made = visualise(model, features, masks=circuit.masks, offsets=circuit.offsets)
        moved = made.values > made.start
        found |= {key: picture for key, picture, on in zip(keys, made.pictures, moved, strict=True) if on}
    return found


def _groups(circuit: Circuit, channels: Mapping[str, Sequence[int]]) -> list[tuple[list[tuple[str, int]], Features]]:
    """Channels as features, layer by layer, with the keys of their nodes; the circuit's own feature by itself."""
    own = circuit.features
    of_feature = own.layer, -1 if own.channels is None else own.channels[0]
    groups = []
    for layer, some in channels.items():
        if rest := [c for c in some if (layer, c) != of_feature]:
            groups.append(([(layer, c) for c in rest], Features(layer, channels=rest)))
        if len(rest) < len(some):
            groups.append(([of_feature], own))
    return groups


def feature_strip(
    model: Model, circuit: Circuit, images, *, kind: str, count: int, size: int
) -> tuple[np.ndarray | None, bool]:
    """A strip of what drives the circuit's feature most, (size, squares * size, 3) uint8 or None, and whether its first
    square is made by gradient ascent, as it is with kind "features"; the others are patches at the feature's position.
    """
    layer, channel = circuit.manifest["feature"]["layer"], circuit.manifest["feature"].get("channel", -1)
    made = _made(model, circuit, [(layer, channel)]) if kind == "features" else {}
    strip = [_square(picture, size) for picture in made.values()]
    if images is not None:
        strip.extend(top_patches(model, circuit, {layer: [channel]}, images, count, size)[layer, channel])
    return np.concatenate(strip, 1) if strip else None, bool(made)


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

    def cut(image: np.ndarray, field: ReceptiveField, h: int, w: int) -> np.ndarray:
        patch = _cut(image, field, h, w)
        return patch if size is None else _square(patch, size)

    network = model.network(image_shape(images))
    within = in_circuit(network, model.variables, circuit.masks, circuit.offsets, None)
    keys, groups = zip(*_groups(circuit, channels), strict=True)
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
