"""Prepared sets of tensorflow-datasets, read without TensorFlow."""

import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from jaxcircuits.data.ahead import THREADS
from jaxcircuits.data.images import Pictures, reason
from jaxcircuits.errors import InputError, nearest


def from_tfds(source: str, fit: Callable[[Image.Image], np.ndarray]) -> Pictures:
    """`tfds:NAME[:SPLIT]`; NAME may end in a version, "mnist:3.0.1", and SPLIT be a slice, "train[:10%]".

    Raises:
        InputError: if the set or the split is unknown, is not on the disk or has no images.
    """
    match = re.fullmatch(r"tfds:([^:]+(?::[\d*][^:]*)?)(?::([^\d*].*))?", source)
    if not match:
        raise InputError(f"{source!r} names no data set; expected tfds:NAME or tfds:NAME:SPLIT")
    name, split = match.groups()
    if not re.fullmatch(r"[\w./:*-]+", name):  # tfds takes options in a name, a directory among them
        raise InputError(f"{name!r} is no name of a data set; expected letters, digits, and / before a configuration")
    splits = _splits(name)
    split = split or next((s for s in ("test", "validation", "train") if s in splits), next(iter(splits)))
    try:
        data = splits[split] if split in splits else _source(name, split)
        keys = list(data[0])
    except Exception as error:
        raise InputError(f"there are no images in split {split!r} of {name!r}; it has {', '.join(splits)}") from error
    if "image" not in keys:
        raise InputError(f"the data set {name!r} has no feature 'image'; it has {', '.join(keys)}")

    def read(i: int) -> np.ndarray:
        image = data[i]["image"]
        if image.dtype != np.uint8 or image.ndim != 3:
            raise ValueError(f"it is {image.dtype} of shape {image.shape}, not uint8 (H, W, C)")
        return fit(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB"))

    return Pictures(len(data), lambda i: f"{split}#{i}", read, threads=THREADS, resizable=True)


def _splits(name: str) -> dict[str, Any]:
    try:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.registered import DatasetNotFoundError
    except ImportError as error:
        raise InputError(f"tfds:{name} needs a package; expected after pip install tensorflow-datasets") from error
    try:
        splits = _source(name)
    except DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)  # of those, the list would need TensorFlow
        raise InputError(f"tensorflow-datasets has no {name!r}; {nearest(name, known)}") from error
    except Exception as error:
        raise InputError(f"the data set {name!r} cannot be opened: {reason(error)}") from error
    if not splits:
        prepare = f"tfds.builder({name!r}, file_format='array_record').download_and_prepare()"
        raise InputError(f"the data set {name!r} is not on the disk; expected after {prepare}")
    return splits


def _source(name: str, split: str | None = None) -> Any:
    import tensorflow_datasets as tfds

    return tfds.data_source(
        name,
        split=split,
        data_dir=os.environ.get("TFDS_DATA_DIR"),  # tfds itself looks only once, when it is imported
        builder_kwargs={"file_format": "array_record"},  # the default, but not beside a data_dir
        download=False,
    )
