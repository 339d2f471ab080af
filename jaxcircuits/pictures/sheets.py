"""Pictures side by side, and as PNG files."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from jaxcircuits.errors import InputError

WHITE = 255


def sheet(pictures: np.ndarray, *, columns: int | None = None, gap: int = 4, scale: int = 1) -> np.ndarray:
    """Pictures (M, h, w, 3) uint8 in rows, with white between them: one picture (H, W, 3).

    Args:
        pictures: M of them.
        columns: in a row; by default about as many as there are rows.
        gap: pixels between pictures.
        scale: how many pixels wide and high each of theirs becomes.

    Raises:
        InputError: there are no pictures.
    """
    if not len(pictures):
        raise InputError("there are no pictures to put on a sheet")
    columns = columns or int(np.ceil(np.sqrt(len(pictures))))
    pictures = np.repeat(np.repeat(pictures, scale, axis=1), scale, axis=2)
    count, height, width, channels = pictures.shape
    rows = -(-count // columns)
    whole = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), WHITE, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        whole[top : top + height, left : left + width] = picture
    return whole


def png(picture: np.ndarray) -> bytes:
    """A picture (h, w, 3) uint8 as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(stream, format="png", optimize=True)
    return stream.getvalue()
