"""What manifests say of the question: which model, weights, images and features, and which versions answered it."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import Any

import numpy as np

from jaxcircuits.data import Images, batches, count, image_shape
from jaxcircuits.features import Features
from jaxcircuits.model import Model

RECORDED_VERSIONS = ("jaxcircuits", "jax", "flax", "numpy")


def versions() -> dict[str, str]:
    return {name: version(name) for name in RECORDED_VERSIONS}


def model_source(model: Model) -> dict[str, Any]:
    """The model and its weights."""
    transformed = {} if model.transform_input is None else {"transform_input": model.transform_input}
    return {"model": model.name, "weights": {"source": model.weights, "sha256": model.sha256} | transformed}


def image_source(images) -> dict[str, Any]:
    """Where images came from."""
    if isinstance(images, Images):
        digest = images.digest  # before len, which would take another look at every file
        return {"source": images.source, "resize": images.resize, "number": len(images), "digest": digest}
    sha = hashlib.sha256(str(image_shape(images)).encode())
    for block, real in batches(images, 16):
        sha.update(np.ascontiguousarray(block[:real]).data)
    return {"source": "array", "resize": None, "number": count(images), "digest": sha.hexdigest()}


def identity(feature: Features) -> dict[str, Any]:
    """One feature."""
    position = feature.position.tolist() if isinstance(feature.position, np.ndarray) else feature.position
    position = list(position) if isinstance(position, tuple) else position
    if feature.directions is None:
        which = {"channel": (feature.channels or (0,))[0]}
    else:  # two files may have one name
        digest = hashlib.sha256(np.ascontiguousarray(feature.directions[0]).data).hexdigest()
        which = {"name": (feature.names or ("",))[0], "digest": digest}
    return {"layer": feature.layer, **which, "position": position}
