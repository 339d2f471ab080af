"""Arrays of uint8 pixels, in memory or in NumPy's files."""

from pathlib import Path

import numpy as np

from jaxcircuits.data.images import Pictures, reason
from jaxcircuits.errors import InputError
from weights_conversion.guards import check_npz, file_size


def from_array(array: np.ndarray, what: str, stem: str) -> Pictures:
    """The images of uint8 (N, H, W, 3), named stem#0, stem#1 and so on; `what` begins the sentence of the error.

    Raises:
        InputError: if the array is of another type or shape, or empty.
    """
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        hint = ", or float images that are normalised and need no read_images" if array.dtype.kind == "f" else ""
        raise InputError(f"{what} is {array.dtype} of shape {array.shape}; expected uint8 (N, H, W, 3), N > 0{hint}")
    return Pictures(len(array), lambda i: f"{stem}#{i}", lambda i: array[i])


def loaded(path: Path) -> np.ndarray:
    """The array of a `.npy` file, left on the disk until it is read, or the array `images` of an `.npz` file.

    Raises:
        InputError: if there is none, or if it is pickled: a pickle could run any program.
    """
    try:
        file_size(path)
        content = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content as archive:
            if "images" in archive:
                check_npz(path, "images")
                return archive["images"]
            keys = ", ".join(map(repr, archive)) or "nothing"
    except Exception as error:  # ValueError, EOFError, BadZipFile, zlib.error, ...
        raise InputError(f"{str(path)!r} cannot be read as a NumPy array: {reason(error)}") from error
    raise InputError(f"{str(path)!r} holds {keys}; expected an array 'images'")
