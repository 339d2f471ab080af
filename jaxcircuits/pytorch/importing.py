"""Masks and scores of other programs: what the paper's program saved with PyTorch, as circuits and scores of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcircuits.circuit import Circuit, finite
from jaxcircuits.errors import InputError
from jaxcircuits.faithfulness import correlation
from jaxcircuits.features import Features, find_layer
from jaxcircuits.gradients import scored_layers
from jaxcircuits.layers import Layer
from jaxcircuits.manifest import identity, image_source, model_source, versions
from jaxcircuits.masks import count, top_kernels
from jaxcircuits.model import Model
from jaxcircuits.paths import effective_kernels, relevant_kernels
from jaxcircuits.scores import Record, Scores
from jaxcircuits.spelling import parse
from weights_conversion import ConversionError, read_file
from weights_conversion.errors import reason
from weights_conversion.files import load_torch

NESTS = ("masks", "mask", "scores", "score")
"""Where the arrays may stand in what is saved, if not at its top."""

ENDINGS = (".weight_mask", ".weight")
"""What may follow a module's name."""

Kernels = Mapping[str, np.ndarray]
"""One number for each kernel: {layer: (I, O) float32}."""

NO_IMAGES = {"source": "array", "resize": None, "number": 0, "digest": ""}


def read_kernels(path: str | Path, model: Model) -> dict[str, np.ndarray]:
    """One number for each kernel, of a file saved with `torch.save` or safetensors: {layer: (I, O)} in call order.

    The file holds tensors (O, I) or (O, I, 1, 1) by module name, possibly under "masks" or "scores", or a list of them
    in the order of the model's convolutions from the first on. It is loaded without running code that it may hold.

    Raises:
        InputError: the file cannot be read, or does not fit the model.
    """
    found = _loaded(Path(path))
    nests = [n for n in NESTS if isinstance(found, Mapping) and n in found and not hasattr(found[n], "shape")]
    if len(nests) > 1:
        raise InputError(f"{str(path)!r} holds {' and '.join(nests)}; expected one of them")
    if nests:
        found = found[nests[0]]
    if isinstance(found, Sequence) and not isinstance(found, str):
        convolutions = [name for name, layer in model.layers.items() if layer.kind == "conv"]
        if not 0 < len(found) <= len(convolutions):
            raise InputError(
                f"{str(path)!r} lists {len(found)} arrays; {model.name} has {len(convolutions)} convolutions"
            )
        found = dict(zip(convolutions, found, strict=False))
    if not isinstance(found, Mapping) or not found:
        raise InputError(f"{str(path)!r} holds a {type(found).__name__}; expected tensors by module name, or a list")
    arrays = {}
    for key, value in found.items():
        name = str(key)
        for ending in ENDINGS:
            name = name.removesuffix(ending)
        if name in arrays:
            raise InputError(f"{str(path)!r} holds two arrays for {name!r}; expected one")
        arrays[name] = _kernels(name, value, find_layer(model.layers, name))
    return {name: arrays[name] for name in model.layers if name in arrays}


def _loaded(path: Path) -> Any:
    try:
        return read_file(path) if path.suffix.lower() == ".safetensors" else load_torch(path)
    except ConversionError as error:
        raise InputError(str(error)) from None


def _kernels(name: str, value: Any, layer: Layer) -> np.ndarray:
    """An array (O, I) or (O, I, 1, 1) as (I, O): numbers or bool."""
    shape = tuple(getattr(value, "shape", ()))
    expected = layer.outputs, layer.inputs
    if shape[:2] != expected or math.prod(shape) != layer.kernels:
        what = f"shape {shape}" if hasattr(value, "shape") else f"type {type(value).__name__}"
        raise InputError(f"what the file has for {name!r} is of {what}; expected {expected}, outputs by inputs")
    try:
        array = np.asarray(value.detach().float() if hasattr(value, "detach") else value).reshape(expected).T
    except (RuntimeError, TypeError, NotImplementedError) as error:  # sparse, quantised and the like
        raise InputError(f"what the file has for {name!r} is no plain array ({reason(error)})") from None
    with np.errstate(over="ignore"):  # too large for float32 is infinite
        array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"what the file has for {name!r} is not finite everywhere")
    return array


def are_masks(kernels: Kernels) -> bool:
    """Whether there is nothing but zeros and ones."""
    return all(((array == 0) | (array == 1)).all() for array in kernels.values())


def read_masks(
    path: str | Path | Kernels, model: Model, feature: Features | str, *, criterion: str = "imported", images=None
) -> Circuit:
    """A mask file as a circuit.

    Kernels that no path leads from to the feature are left out, and layers that run after it: they change nothing, and
    are not counted here. Layers that the file does not name keep all their kernels.

    Args:
        path: as for `read_kernels`, or what that returned; zeros and ones.
        model: the network that the masks are of.
        feature: one feature, or how it is written on the command line, such as "features.10:9".
        criterion: what the circuit's manifest and file name call the way it was found.
        images: if they are given, the circuit is judged on them, and they stand in its manifest.

    Raises:
        InputError: the file cannot be read, does not fit the model, or holds something else.
    """
    feature = _one(feature, model)
    kernels = _before(feature, path, model)
    if not are_masks(kernels):
        what = "what is given" if isinstance(path, Mapping) else repr(str(path))
        raise InputError(f"{what} holds other numbers than 0 and 1; scores become circuits with a keep")
    masks = {name: array[None] != 0 for name, array in kernels.items()}
    return circuit_of(model, feature, masks, criterion=criterion, images=images)


def read_scores(
    path: str | Path | Kernels, model: Model, feature: Features | str, *, criterion: str = "imported"
) -> Scores:
    """A score file as `Scores` of one feature, for `top_kernels`, `curve` and all else that takes scores.

    Scores of kernels that no path leads from to the feature become 0; layers that run after it are left out. Layers
    that the file does not name have none: circuits of these scores keep all their kernels.

    Args:
        path, model, feature, criterion: as for `read_masks`; any numbers.

    Raises:
        InputError: as for `read_masks`.
    """
    feature = _one(feature, model)
    kernels = _before(feature, path, model)
    layers = scored_layers(model.network(), feature.layer, tuple(kernels))
    relevant = relevant_kernels(model, feature, layers=layers)
    values = {name: jnp.where(relevant[name], kernels[name][None], 0) for name in layers}
    record = Record(criterion, None, feature.objective, 0, None, "float32")
    return Scores(values, relevant, layers, record)


def circuits_of_scores(
    model: Model, feature: Features | str, scores: Scores, amounts: Sequence[Mapping[str, Any]], *, images=None
) -> list[Circuit]:
    """The circuits of scores that were found elsewhere.

    Args:
        model: the network that the scores are of.
        feature: the one feature that they are for.
        scores: as `read_scores` returns them.
        amounts: how much each circuit keeps, {"keep": .05} or {"kernels": 200}.
        images: if they are given, the circuits are judged on them, and they stand in the manifests.

    Returns:
        A circuit for each amount, in their order.

    Raises:
        InputError: an amount is none, or none of what is kept leads to the feature.
    """
    feature = _one(feature, model)
    options = {"criterion": scores.record.criterion, "images": images}
    return [circuit_of(model, feature, top_kernels(scores, **amount), amount=amount, **options) for amount in amounts]


def circuit_of(
    model: Model,
    feature: Features,
    masks: Mapping[str, Any],
    *,
    criterion: str,
    images=None,
    amount: Mapping[str, Any] | None = None,
) -> Circuit:
    """A circuit of masks {layer: (1, I, O)} that were found elsewhere, counted and, on images, judged."""
    layers = scored_layers(model.network(), feature.layer, tuple(masks))
    relevant = relevant_kernels(model, feature, layers=layers)
    masks = {name: np.asarray(masks[name]) & np.asarray(relevant[name]) for name in layers}
    kept = int(count(masks)[0])
    if not kept:
        raise InputError(f"none of the kernels that are kept leads to {feature.labels[0]}")
    r = None if images is None else finite(correlation(model, images, feature, masks)[0])
    manifest = {
        **model_source(model),
        "images": NO_IMAGES if images is None else image_source(images),
        "criterion": criterion,
        "ablation": "zero",
        "absolute": None,
        "granularity": "kernel",
        "seed": None,
        "precision": "float32",
        "dtype": "float32",
        "versions": versions(),
        "layers": list(layers),
        "objective": feature.objective,
        "feature": identity(feature),
        **{"keep": None, "kernels": kept if amount is None else None, **(amount or {})},
        "relevant": int(count(relevant)[0]),
        "kept": kept,
        "effective": int(count(effective_kernels(model, feature, masks))[0]),
        "correlation": r,
    }
    direction = None if feature.directions is None else feature.directions[0]
    return Circuit({name: mask[0] for name, mask in masks.items()}, manifest, direction=direction)


def _one(feature: Features | str, model: Model) -> Features:
    found = parse(feature, model.layers) if isinstance(feature, str) else feature.resolve(model.layers, places=False)
    if len(found) != 1:
        raise InputError(f"a file holds the kernels of one feature; {feature!r} names {len(found)}")
    return found


def _before(feature: Features, source: str | Path | Kernels, model: Model) -> Kernels:
    """The kernels in a file, or given, without the layers that run after the feature."""
    kernels = source if isinstance(source, Mapping) else read_kernels(source, model)
    names = list(model.layers)
    names = names[: names.index(feature.layer) + 1]
    return {name: array for name, array in kernels.items() if name in names}
