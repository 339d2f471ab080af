"""Image sources: folders, files, arrays, tensorflow-datasets and a few photographs that other packages ship.

One file a kind of source, each of which ends in `Pictures`; images.py makes them a set that is read again and again,
block by block, and never held whole; ahead.py has the threads that decode the next block; blocks.py cuts any images
into blocks of a fixed size.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxcircuits.data.arrays import from_array
from jaxcircuits.data.blocks import batches, count, image_shape
from jaxcircuits.data.files import INTERPOLATIONS, fitted, from_path
from jaxcircuits.data.images import ImageNet, Images, Preprocessing
from jaxcircuits.data.photos import from_photos
from jaxcircuits.data.tfds import from_tfds
from jaxcircuits.errors import InputError

__all__ = ["ImageNet", "Images", "Preprocessing", "batches", "count", "image_shape", "read_images"]


def read_images(
    source: str | os.PathLike[str] | np.ndarray,
    model: Preprocessing | None = None,
    *,
    resize: str = "crop",
    strict: bool = False,
    batch: int = 16,
    limit: int | None = None,
) -> Images:
    """Opens a set of images; pixels are read when it is iterated over.

    Pictures become RGB as they are stored, without regard to EXIF orientation, as in torchvision's `ImageFolder`.

    Args:
        source: one of

            - a folder, read recursively in the order of the relative paths, hidden files left out; or one picture;
            - `photos`: four square crops each of twelve photographs that scikit-image and scikit-learn ship,
              resized to the input size; `photos:a` and `photos:b`, its halves, share no photograph;
            - `tfds:NAME` or `tfds:NAME:SPLIT`: a prepared set of tensorflow-datasets with a feature `image`;
              SPLIT is the first of test, validation, train by default;
            - an array, a `.npy` file or an `.npz` file with the array `images`: uint8 (N, H, W, 3), from 0 to 255,
              only normalised and never resized.

            A path object is always a folder or a file.
        model: whatever has `input_size`, `resize_size` (pixels), `mean` and `std` (of values from 0 to 1), and perhaps
            `interpolation`, "bilinear" or "bicubic"; 224, 256 and ImageNet's if None.
        resize: "crop" brings the shorter side to `resize_size` and cuts out the centre, like torchvision's `Resize`
            and `CenterCrop`; "squash" resizes straight to a square of `input_size`.
        strict: if True, files that cannot be decoded are an error here and now, at the price of looking into all.
        batch: the most images in one block; in memory are that, and as many again that are read ahead.
        limit: how many images to read, the first ones; all if None.

    Returns:
        Images whose blocks are (n, H, W, 3) float32, (value / 255 - mean) / std, n <= batch.

    Raises:
        InputError: if the source does not exist, is of the wrong kind or holds nothing readable.
    """
    if resize not in ("crop", "squash"):
        raise InputError(f"unknown resize {resize!r}; expected 'crop' or 'squash'")
    if isinstance(source, str) and not source:
        raise InputError("the images' source is empty; expected photos, tfds:NAME, a folder or a file")
    for option, value in (("batch", batch), ("limit", limit)):
        if value is not None and value < 1:
            raise InputError(f"{option} is a number of images, at least 1; got {value!r}")
    like: Any = ImageNet() if model is None else model
    if (how := getattr(like, "interpolation", "bilinear")) not in INTERPOLATIONS:
        raise InputError(f"unknown interpolation {how!r}; expected one of {', '.join(INTERPOLATIONS)}")

    def fit(picture: Image.Image) -> np.ndarray:
        return fitted(picture, like.input_size, like.resize_size, resize, how)

    if isinstance(source, np.ndarray):
        label, pictures = "array", from_array(source, "the array", "array")
    elif isinstance(source, str) and source.partition(":")[0] == "photos":
        label, pictures = source, from_photos(source, like.input_size)
    elif isinstance(source, str) and source.startswith("tfds:"):
        label, pictures = source, from_tfds(source, fit)
    elif isinstance(source, str | os.PathLike):
        label, pictures = os.fspath(source), from_path(Path(source), fit)
        if label == "array" or label.partition(":")[0] in ("photos", "tfds"):
            label = os.path.join(os.curdir, label)  # as it is, it would be read as another source
    else:
        raise InputError(f"images come from a name, a path or a uint8 array; got an object, {type(source).__name__}")
    return Images(label, pictures, like, resize=resize, strict=strict, batch=batch, limit=limit)
