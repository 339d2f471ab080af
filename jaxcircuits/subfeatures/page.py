"""A trajectory map as one HTML page, with the images in it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from jaxcircuits.data import Images, batches
from jaxcircuits.model import Model
from jaxcircuits.pages import data_uri, render
from jaxcircuits.subfeatures.parts import Parts
from jaxcircuits.subfeatures.trajectories import Trajectories

THUMBNAIL = 96  # pixels


def map_page(model: Model, images, parts: Parts, found: Trajectories, *, title: str | None = None) -> str:
    """The page: images as points that move from layer to layer, coloured by the feature's activation or by group.

    Args:
        model: the network, for images that are normalised.
        images: those that were scored.
        parts: their groups.
        found: where they lie.
        title: of the page, by default the model's name and the feature's label.
    """
    scores = parts.of
    data = {
        "stops": found.stops,
        "points": np.round(found.points.astype(float), 4).tolist(),
        "names": scores.names,
        "activations": [float(f"{value:.5g}") for value in scores.activations.tolist()],
        "positions": scores.positions.tolist(),
        "groups": parts.groups.tolist(),
        "labels": parts.names,
        "thumbnails": [data_uri(picture) for picture in _thumbnails(model, images)],
    }
    title = title or f"{model.name} {scores.features.labels[0]}"
    files = {"styles": ["trajectories.css"], "scripts": ["trajectories.js"]}
    return render("trajectories.html", package="jaxcircuits.subfeatures", title=title, data=data, **files)


def _thumbnails(model: Model, images) -> list[np.ndarray]:
    made = []
    blocks = images.uint8() if isinstance(images, Images) else _pixels(model, images)
    for block in blocks:
        for picture in block:
            picture = picture if picture.shape[-1] == 3 else np.repeat(picture[..., :1], 3, -1)
            made.append(np.asarray(Image.fromarray(picture).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)))
    return made


def _pixels(model: Model, images):
    """Images that are normalised already, as uint8."""
    for block, real in batches(images, 16):
        pixels = 255 * (block[:real] * np.array(model.std, np.float32) + np.array(model.mean, np.float32))
        yield np.clip(np.round(pixels), 0, 255).astype(np.uint8)
