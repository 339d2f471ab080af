"""One circuit: a feature, its mask, and where they came from; and the file that holds all three.

A file is a safetensors file with `mask/<layer>` bool (O, I) for each layer, where asked for `score/<layer>` float32
(O, I), for mean ablation `offset/<layer>` float32 (O,), for a direction `direction` float32 (O,), and the manifest as
JSON under the metadata key "jaxcircuits".
Kernels stand in PyTorch's order (O, I) in files and in Flax's (I, O) in memory.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxcircuits.errors import InputError
from jaxcircuits.features import Features
from jaxcircuits.files import write_whole
from weights_conversion.errors import printable
from weights_conversion.guards import file_size, parse_json

KEY, FORMAT = "jaxcircuits", 1

# What a manifest says of the result, not of the question: the same question may have it differ in a last digit.
COMPUTED = {"versions", "sparse", "relevant", "kept", "effective", "correlation", "group_correlation"}

# What is read of a manifest, and the types that it may have; what else stands there is only passed on.
TYPES: Mapping[str, Any] = {
    "model": (str,),
    "weights": {"source": (str,), "sha256": (str,), "transform_input": (bool,)},
    "images": {"source": (str,), "resize": (str, None), "number": (int,), "digest": (str,)},
    "feature": {"layer": (str,), "name": (str,), "channel": (int,), "position": (str, list, None)},
    "criterion": (str,),
    "ablation": (str,),
    "objective": (str,),
    "keep": (float, int, None),
    "kernels": (int, None),
    "relevant": (int,),
    "kept": (int,),
    "effective": (int,),
    "correlation": (float, int, None),
    "layers": (list,),
    "group": {"label": (str,), "images": (list,)},
}
EITHER = {"name", "channel", "transform_input", "ablation", "group"}  # need not be there


@dataclass(frozen=True, eq=False)
class Circuit:
    """A feature-preserving circuit.

    Attributes:
        masks: {layer: (I, O) bool} in call order, the kernels that are kept.
        manifest: where it came from: model, weights, images, feature, criterion and its options, objective, keep,
            counts, correlation, versions. Whatever JSON can hold.
        scores: {layer: (I, O) float32} or None.
        offsets: {layer: (O,) float32}, what mean ablation adds to the layers' outputs; None where removed kernels
            leave nothing.
        direction: (O,) float32, if the feature is one.
    """

    masks: Mapping[str, np.ndarray]
    manifest: Mapping[str, Any]
    scores: Mapping[str, np.ndarray] | None = field(default=None, kw_only=True)
    offsets: Mapping[str, np.ndarray] | None = field(default=None, kw_only=True)
    direction: np.ndarray | None = field(default=None, kw_only=True)

    @property
    def ablation(self) -> str:
        """What stands in for removed kernels: "zero" or "mean"."""
        return self.manifest.get("ablation", "zero")

    @property
    def features(self) -> Features:
        """The circuit's one feature."""
        feature = self.manifest["feature"]
        position = feature["position"]
        place = np.asarray(position) if isinstance(position, list) else position
        options = {"position": place, "objective": self.manifest["objective"]}
        if self.direction is not None:
            return Features(feature["layer"], directions=self.direction, names=[feature["name"]], **options)
        return Features(feature["layer"], channels=[feature["channel"]], **options)

    @property
    def stem(self) -> str:
        """The file's name without its ending: `features.10_9@6,6.snip.keep0.05`."""
        return stem(self.manifest)

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the circuit to a file, which appears whole or not at all.

        Raises:
            InputError: the file exists with another manifest and `force` is not set, or cannot be written.
        """
        from safetensors.numpy import save

        path = Path(path)
        manifest = {**self.manifest, "layers": list(self.masks)}
        if not force:
            check_free(path, manifest)
        tensors = {f"mask/{name}": np.ascontiguousarray(mask.T, bool) for name, mask in self.masks.items()}
        if self.scores is not None:
            tensors |= {f"score/{name}": np.ascontiguousarray(s.T, np.float32) for name, s in self.scores.items()}
        if self.offsets is not None:
            tensors |= {f"offset/{name}": np.ascontiguousarray(a, np.float32) for name, a in self.offsets.items()}
        if self.direction is not None:
            tensors["direction"] = np.ascontiguousarray(self.direction, np.float32)
        try:
            text = json.dumps({**manifest, "format": FORMAT}, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"the circuit's manifest cannot be written as JSON: {error}") from None
        write_whole(path, save(tensors, {KEY: text}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Circuit:
        """Read a circuit file.

        Raises:
            InputError: there is no such file, or it is no circuit file of this version.
        """
        path = Path(path)
        metadata, tensors = _read(path)
        try:
            return _circuit(metadata, tensors)
        except (ValueError, RecursionError, OverflowError) as error:
            raise InputError(f"{str(path)!r} is no circuit file: {error}") from None


def stem(manifest: Mapping[str, Any]) -> str:
    """A circuit file's name without its ending; it tells mean ablation, which changes more than masks."""
    kept = manifest["keep"]
    amount = f"kernels{manifest['kernels']}" if kept is None else f"keep{kept:g}"
    group = f".{manifest['group']['label']}" if "group" in manifest else ""  # of images, whose circuit it is
    return tame(f"{feature_stem(manifest)}{group}.{method_stem(manifest)}.{amount}")


def method_stem(manifest: Mapping[str, Any]) -> str:
    """The part of `stem` that says how the circuit was made: `snip`, `snip.filters`, `snip.mean`."""
    unit = ".filters" if manifest.get("granularity") == "filter" else ""
    return manifest["criterion"] + unit + (".mean" if manifest.get("ablation") == "mean" else "")


def feature_stem(manifest: Mapping[str, Any]) -> str:
    """The part of `stem` that says which feature it is: `features.10_9@6,6`."""
    feature, position = manifest["feature"], manifest["feature"]["position"]
    which = feature["name"] if "name" in feature else feature["channel"]
    if isinstance(position, list):
        position = "given" if position and isinstance(position[0], list) else ",".join(map(str, position))
    return tame(f"{feature['layer']}_{which}{f'@{position}' if position else ''}")


def feature_label(manifest: Mapping[str, Any]) -> str:
    """The feature as it is written on the command line: `features.10:9@6,6`."""
    feature, position = manifest["feature"], manifest["feature"]["position"]
    if isinstance(position, list):
        position = "given" if position and isinstance(position[0], list) else ",".join(map(str, position))
    label = f"{feature['layer']}:{feature.get('channel', feature.get('name'))}" + (f"@{position}" if position else "")
    return printable(label)  # the name of a file of directions may be anything


def tame(name: str) -> str:
    """Characters that could lead out of a folder, or that a file system may refuse, become `_`."""
    name = re.sub(r"[^\w.,@+=-]", "_", name)
    return name if name.strip(".") else "_" * max(len(name), 1)


def check_free(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raise an InputError if a circuit of another manifest is at this path, or anything that is no circuit file."""
    if not os.path.lexists(path):
        return
    try:
        old = _manifest(_read(path, arrays=False)[0])
    except (ValueError, RecursionError, OverflowError):
        raise InputError(f"{str(path)!r} exists and is no circuit file; --force (force=True) overwrites it") from None
    try:
        new = json.loads(json.dumps(manifest))
    except (TypeError, ValueError) as error:
        raise InputError(f"the manifest of {str(path)!r} is no JSON: {error}") from None
    differing = sorted(k for k in {*old, *new} - COMPUTED if old.get(k) != new.get(k))
    if differing:
        raise InputError(
            f"{str(path)!r} holds a circuit made otherwise (not the same: {', '.join(differing)}); "
            "--force (force=True) overwrites it"
        )


def finite(number: float) -> float | None:
    """A number for JSON, which has no nan."""
    return float(number) if math.isfinite(number) else None


def _read(path: Path, *, arrays: bool = True) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """A safetensors file's metadata and arrays."""
    from safetensors import safe_open

    try:
        file_size(path)  # safetensors' own words for what the system says are poor
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{str(path)!r} cannot be read: {why}") from None
    try:
        with safe_open(path, framework="numpy") as file:
            known = ("mask/", "score/", "offset/", "direction")
            names = [name for name in file.keys() if arrays and name.startswith(known)]  # noqa: SIM118
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except Exception as error:  # a broken file may raise anything
        raise InputError(f"{str(path)!r} is no circuit file: {str(error).partition(chr(10))[0]}") from None


def _manifest(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The manifest, of which everything that is ever read has the right type.

    Raises:
        ValueError: it has not; the message is the end of a sentence.
    """

    if KEY not in metadata:
        raise ValueError(f"it has no metadata {KEY!r}")
    try:
        manifest = parse_json(metadata[KEY])
    except ValueError as error:
        raise ValueError(f"its manifest is no JSON that is read: {error}") from None
    if not isinstance(manifest, dict) or manifest.pop("format", None) != FORMAT:
        raise ValueError(f"its manifest is not of format {FORMAT}")
    check_types(manifest, TYPES)
    if not all(type(name) is str for name in manifest["layers"]):
        raise ValueError("its manifest has 'layers' that are not names")
    if (manifest["keep"] is None) == (manifest["kernels"] is None):
        raise ValueError("its manifest must have one of keep and kernels")
    if ("name" in manifest["feature"]) == ("channel" in manifest["feature"]):
        raise ValueError("its manifest must have one of a feature's channel and name")
    return manifest


def check_types(values: Any, types: Mapping[str, Any], where: str = "") -> None:
    """Raise a ValueError if something in a manifest is missing or of the wrong type, or a number beyond measure."""
    for key, expected in types.items():
        if not isinstance(values, dict) or (key not in values and key not in EITHER):
            raise ValueError(f"its manifest has no {where}{key}")
        value = values.get(key)
        if isinstance(expected, Mapping):
            if key in values:
                check_types(value, expected, f"{key}.")
        elif key in values and not any(value is None if kind is None else type(value) is kind for kind in expected):
            raise ValueError(f"its manifest has {where}{key} of the wrong type, {type(value).__name__}")
        elif isinstance(value, int | float) and not -(2**63) < value < 2**63:
            raise ValueError(f"its manifest has {where}{key} = {value}")


def _circuit(metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> Circuit:
    """What a file holds, checked; a ValueError's message is the end of a sentence."""
    manifest = _manifest(metadata)
    layers, direction = manifest["layers"], arrays.get("direction")
    if sorted(layers) != sorted(name.removeprefix("mask/") for name in arrays if name.startswith("mask/")):
        raise ValueError("its masks are not those of the layers that its manifest lists")
    masks = {name: arrays[f"mask/{name}"].T for name in layers}
    for name, mask in masks.items():
        if mask.dtype != bool or mask.ndim != 2 or (mask.view(np.uint8) > 1).any():
            raise ValueError(f"its mask of {name!r} is not bool of shape (O, I)")
    scores = {name: arrays[f"score/{name}"].T for name in layers if f"score/{name}" in arrays}
    if any(s.dtype != np.float32 or s.shape != masks[n].shape or not np.isfinite(s).all() for n, s in scores.items()):
        raise ValueError("its scores are not finite float32 of the masks' shapes")
    offsets = {name: arrays[f"offset/{name}"] for name in layers if f"offset/{name}" in arrays}
    if any(
        a.dtype != np.float32 or a.shape != masks[n].shape[1:] or not np.isfinite(a).all() for n, a in offsets.items()
    ):
        raise ValueError("its offsets are not finite float32 of shape (O,)")
    if len(offsets) != (len(layers) if manifest.get("ablation", "zero") == "mean" else 0):
        raise ValueError("it has not an offset for each mask, as mean ablation has, and no other")
    if (direction is None) != ("channel" in manifest["feature"]):
        raise ValueError("its feature is neither a channel nor a direction")
    if direction is not None and (direction.dtype != np.float32 or direction.ndim != 1):
        raise ValueError("its direction is not float32 of shape (O,)")
    circuit = Circuit(masks, manifest, scores=scores or None, offsets=offsets or None, direction=direction)
    _ = circuit.features, circuit.stem
    return circuit
