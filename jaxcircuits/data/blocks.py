"""Images of any origin, cut into blocks of one fixed size."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from jaxcircuits.data.images import Images
from jaxcircuits.errors import InputError, check_count


def batches(images: Images | Any, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Cuts images into blocks of one fixed size, so that a compiled function sees a single shape.

    Args:
        images: `Images`, or images that are normalised already: a float array (N, H, W, C) or an iterable of such.
        size: images in a block.

    Returns:
        Pairs of a float32 block (size, H, W, C) and the number of images in it; the rest of the last block is
        copies of the last one.

    Raises:
        InputError: if there are no images, or they are not float, not 4-D, not finite or of different sizes.
    """
    check_count("the size of a block", size)
    return _padded(_blocks(images), size)


def count(images: Images | Any) -> int:
    """The number of images in whatever `batches` takes; what is neither `Images` nor an array is read to its end.

    Raises:
        InputError: as `batches`, and for an iterator, which could not be read afterwards.
    """
    if isinstance(images, Images):
        return len(images)
    if isinstance(images, Iterator):
        raise InputError("the images are an iterator, which can be read only once; expected a list or an array")
    return sum(map(len, _blocks(images)))


def _blocks(images: Images | Any) -> Iterable[np.ndarray]:
    if hasattr(images, "dtype"):  # one array, of whatever library
        return [_checked(images)]
    if not isinstance(images, Iterable) or isinstance(images, str):
        kind = f"the string {images!r}" if isinstance(images, str) else f"a {type(images).__name__}"
        raise InputError(f"the images are {kind}; expected the result of read_images, or a float array (N, H, W, C)")
    return map(_checked, images)


def _checked(block: Any) -> np.ndarray:
    try:
        block = np.asarray(block)
    except (TypeError, ValueError, RuntimeError):  # such as pairs of images and labels, or tensors on a GPU
        kind = type(block).__name__
        raise InputError(f"the images hold a {kind} that is no array; expected float arrays (N, H, W, C)") from None
    if block.dtype == np.uint8:
        raise InputError("the images are uint8 and so not normalised; open them with read_images(array, model)")
    if block.dtype.kind != "f" or block.ndim != 4 or 0 in block.shape:
        raise InputError(f"the images are {block.dtype} of shape {block.shape}; expected float (N, H, W, C), N > 0")
    return block


def _padded(blocks: Iterable[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, int]]:
    shape, out, filled = (), np.empty(0), 0
    for block in blocks:
        if block.shape[1:] != (shape := shape or block.shape[1:]):
            raise InputError(f"images of shape {block.shape[1:]} follow images of {shape}; expected one shape")
        while len(block):
            if not filled:  # a new buffer each time: JAX may go on using the one it was given
                out = np.empty((size, *shape), np.float32)
            part, block = block[: size - filled], block[size - filled :]
            if not np.isfinite(part).all():
                raise InputError("the images contain NaN or infinity; expected normalised values")
            out[filled : filled + len(part)] = part
            filled = (filled + len(part)) % size
            if not filled:
                yield out, size
    if not shape:
        raise InputError("there are no images; expected at least one")
    if filled:  # not with zeros: a network that divides by their spread makes NaN, which no weight of 0 takes away
        out[filled:] = out[filled - 1]
        yield out, filled


def image_shape(images: Images | Any) -> tuple[int, int, int]:
    """(H, W, C) of the first image."""
    if isinstance(images, Images):
        return images.shape
    for block in _blocks(images):
        return block.shape[1:]
    raise InputError("there are no images; expected at least one")
