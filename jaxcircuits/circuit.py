"""One circuit: a feature, its mask, and where they came from; and the file that holds all three.

A file is a safetensors file with `mask/<layer>` bool (O, I) for each layer, where asked for `score/<layer>` float32
(O, I), for a direction `direction` float32 (O,), and the manifest as JSON under the metadata key "jaxcircuits".
Kernels stand in PyTorch's order (O, I) in files and in Flax's (I, O) in memory.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxcircuits.errors import InputError
from jaxcircuits.features import Features

KEY, FORMAT = "jaxcircuits", 1

# What a manifest says of the result, not of the question: the same question may have it differ in a last digit.
COMPUTED = {"versions", "relevant", "kept", "effective", "correlation"}


@dataclass(frozen=True, eq=False)
class Circuit:
    """A feature-preserving circuit.

    Attributes:
        masks: {layer: (I, O) bool} in call order, the kernels that are kept.
        manifest: where it came from: model, weights, images, feature, criterion and its options, objective, keep,
            counts, correlation, versions. Whatever JSON can hold.
        scores: {layer: (I, O) float32} or None.
        direction: (O,) float32, if the feature is one.
    """

    masks: Mapping[str, np.ndarray]
    manifest: Mapping[str, Any]
    scores: Mapping[str, np.ndarray] | None = field(default=None, kw_only=True)
    direction: np.ndarray | None = field(default=None, kw_only=True)

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
        feature, criterion = self.manifest["feature"], self.manifest["criterion"]
        name = feature["name"] if self.direction is not None else feature["channel"]
        place = self.features.place
        at = "" if place is None else "@" + (",".join(map(str, place)) if isinstance(place, tuple) else place)
        kept = self.manifest["keep"]
        amount = f"kernels{self.manifest['kernels']}" if kept is None else f"keep{kept:g}"
        return f"{feature['layer']}_{name}{at}.{criterion}.{amount}"

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the circuit to a file, which appears whole or not at all.

        Raises:
            InputError: the file exists with another manifest and `force` is not set, or cannot be written.
        """
        from safetensors.numpy import save

        path = Path(path)
        if not force and path.exists():
            _check_same(path, self.manifest)
        tensors = {f"mask/{name}": np.ascontiguousarray(mask.T) for name, mask in self.masks.items()}
        if self.scores is not None:
            tensors |= {f"score/{name}": np.ascontiguousarray(s.T, np.float32) for name, s in self.scores.items()}
        if self.direction is not None:
            tensors["direction"] = np.ascontiguousarray(self.direction, np.float32)
        manifest = {**self.manifest, "format": FORMAT, "layers": list(self.masks)}
        write_whole(path, save(tensors, {KEY: json.dumps(manifest, sort_keys=True)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Circuit:
        """Read a circuit file.

        Raises:
            InputError: there is no such file, or it is no circuit file of this version.
        """
        return _load(Path(path))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place, then move it there: nobody ever sees half of it.

    Raises:
        InputError: the folder cannot be made or the file not be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_bytes(content)
            beside.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error


def _check_same(path: Path, manifest: Mapping[str, Any]) -> None:
    try:
        old = dict(_load(path).manifest)
    except InputError:
        raise InputError(f"{str(path)!r} exists and is no circuit file; --force (force=True) overwrites it") from None
    new = json.loads(json.dumps(manifest))
    differing = sorted(k for k in {*old, *new} - COMPUTED if old.get(k) != new.get(k))
    if differing:
        raise InputError(
            f"{str(path)!r} holds a circuit made otherwise ({', '.join(differing)} differ); --force (force=True) "
            "overwrites it"
        )


def _load(path: Path) -> Circuit:
    from safetensors import SafetensorError, safe_open

    try:
        path.open("rb").close()  # safetensors' own words for what the system says are poor
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{str(path)!r} is no circuit file: {error}") from None
    try:
        manifest = json.loads(metadata[KEY])
        if manifest.pop("format") != FORMAT:
            raise InputError(f"{str(path)!r} is a circuit file of another version; expected {FORMAT}")
        layers = manifest.pop("layers")
        masks = {name: tensors[f"mask/{name}"].T for name in layers}
        scores = {name: tensors[f"score/{name}"].T for name in layers if f"score/{name}" in tensors}
        circuit = Circuit(masks, manifest, scores=scores or None, direction=tensors.get("direction"))
        _ = circuit.features, circuit.stem
        if not all(mask.dtype == bool and mask.ndim == 2 for mask in masks.values()):
            raise InputError(f"{str(path)!r} is no circuit file: its masks are not bool of shape (O, I)")
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{str(path)!r} is no circuit file: its manifest is missing or broken ({error})") from None
    return circuit


def finite(number: float) -> float | None:
    """A number for JSON, which has no nan."""
    return float(number) if math.isfinite(number) else None
