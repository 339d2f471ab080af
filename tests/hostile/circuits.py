"""Circuit files."""

import json
import os
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import jaxcircuits as jc
from jaxcircuits.circuit import KEY, feature_label
from jaxcircuits.diagram.page import summary
from jaxcircuits.pages import table
from tests import manifests
from tests.hostile.arrays import safetensors_of
from tests.hostile.mutations import STRINGS, json_text, twisted
from tests.hostile.survival import Attempt

MANIFEST = manifests.MANIFEST | {"format": 1, "ablation": "zero"}

SHAPES = {"features.0": (64, 3), "features.3": (192, 64)}


@cache
def seed_arrays(kind: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {f"mask/{name}": rng.random(shape) < 0.3 for name, shape in SHAPES.items()}
    if kind == "scored":
        arrays |= {f"score/{name}": rng.random(shape, np.float32) for name, shape in SHAPES.items()}
    if kind == "mean":
        arrays |= {f"offset/{name}": rng.random(shape[0], np.float32) for name, shape in SHAPES.items()}
    if kind == "direction":
        arrays["direction"] = rng.random(192, np.float32)
    return arrays


def seed_manifest(kind: str) -> dict[str, Any]:
    feature = {"layer": "features.3", "name": "dirs-0", "position": "middle"}
    changes = {"mean": {"ablation": "mean"}, "direction": {"feature": feature}}
    return MANIFEST | changes.get(kind, {})


def circuit(rng: Random, place: Path) -> Attempt:
    kind = rng.choice(("plain", "scored", "mean", "direction"))
    arrays, manifest = dict(seed_arrays(kind)), seed_manifest(kind)
    if rng.random() < 0.7:
        manifest = twisted(rng, manifest)
    if rng.random() < 0.3:
        name = rng.choice(sorted(arrays))
        old = arrays.pop(name)
        new: Any = [
            None,
            old.T,
            old[:0],
            old.astype(np.float64),
            old.view(np.uint8),
            np.full_like(old, np.nan, np.float32),
            old[None],
            old.reshape(-1),
        ]
        if (array := rng.choice(new)) is not None:
            arrays[name if rng.random() < 0.8 else rng.choice(STRINGS)] = array
    text = json_text(rng, manifest) if rng.random() < 0.2 else json.dumps(manifest).encode()
    metadata = {KEY if rng.random() < 0.97 else "other": text.decode("latin1")}
    path = place / "in" / "a.safetensors"
    path.write_bytes(safetensors_of(rng, arrays, metadata))

    def attempt():
        found = jc.Circuit.load(path)
        assert os.path.basename(found.stem) == found.stem and len(found.features) == 1
        assert feature_label(found.manifest).isprintable() and table(found.manifest)
        summary(found)
        found.save(place / "out" / f"{found.stem}.safetensors")
        again = jc.Circuit.load(place / "out" / f"{found.stem}.safetensors")
        assert again.manifest == found.manifest

    return attempt
