"""Picture files and folders of them, through Pillow."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from jaxcircuits.data.ahead import THREADS
from jaxcircuits.data.arrays import from_array, loaded
from jaxcircuits.data.images import Pictures
from jaxcircuits.errors import InputError, nearest
from weights_conversion.guards import file_size

BILINEAR = Image.Resampling.BILINEAR
INTERPOLATIONS = {"bilinear": BILINEAR, "bicubic": Image.Resampling.BICUBIC}

_EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Pillow goes by a file's content, not by its name: what is only called .png must not reach, say, Ghostscript.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
_SCANS = 100  # a progressive JPEG has about ten; a hundred bytes of a scan may take as long as a whole picture
_LONGEST = 1000  # a strip of 1 x 100,000 pixels, its shorter side resized to 256, would take gigabytes


def from_path(path: Path, fit: Callable[[Image.Image], np.ndarray]) -> Pictures:
    """A folder, one picture, or one file of arrays.

    Raises:
        InputError: if there is none, or a folder without pictures.
    """
    if os.path.isdir(path):  # unlike Path.is_dir, it never fails
        names = _listed(path)
        files = [path / name for name in names]
        if not names:
            raise InputError(f"the folder {str(path)!r} holds no pictures; expected {' '.join(_EXTENSIONS)}")
    elif not os.path.exists(path):
        _, folders, files = next(os.walk(path.parent), ("", [], []))
        near = nearest(path.name, [*folders, *files, "photos", "photos:a", "photos:b"])
        raise InputError(f"there is no {str(path)!r}; expected a folder, a file, photos or tfds:NAME, and {near}")
    elif path.suffix.lower() in (".npy", ".npz"):
        return from_array(loaded(path), f"the array in {str(path)!r}", path.stem)
    else:
        names, files = [path.name], [path]
    return Pictures(
        len(files),
        names.__getitem__,
        open=lambda i: opened(files[i]),
        read=lambda picture: fit(decoded(picture)),
        check=lambda picture: decoded(picture, sketch=True),
        threads=THREADS,
        resizable=True,
    )


def opened(path: Path) -> Image.Image:
    """A file of which the beginning is read, and nothing decoded.

    Only for the caller's thread: to silence Pillow's warnings changes what all threads see.

    Raises:
        Exception: whatever Pillow raises, for pictures too large as well.
    """
    file_size(path)  # a pipe of that name would be waited for
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            picture = Image.open(path, formats=_FORMATS)
        except UnidentifiedImageError as error:
            raise ValueError("not a picture of a known format") from error
    if not min(picture.size) or max(picture.size) > _LONGEST * min(picture.size):
        picture.close()
        raise ValueError("{} x {} is more than {} times as long as wide".format(*picture.size, _LONGEST))
    if "progressive" in picture.info and path.read_bytes().count(b"\xff\xda") > _SCANS:
        picture.close()
        raise ValueError(f"a JPEG of more than {_SCANS} scans")
    return picture


def decoded(picture: Image.Image, *, sketch: bool = False) -> Image.Image:
    """As RGB of 8 bits; a sketch of a JPEG is an eighth as wide: the whole file is parsed, in a fifth of the time.

    Raises:
        Exception: whatever the decoder raises; for grey of no range that is known.
    """
    picture.info.pop("transparency", None)  # Pillow warns where RGB cannot express it
    if sketch:
        picture.draft(None, (1, 1))
    if picture.mode == "F":
        raise ValueError("its grey is in floats, of whatever range; expected 8 or 16 bits")
    if picture.mode.startswith("I"):  # Pillow would cut it off at 255
        grey = np.asarray(picture).astype(np.int64)
        if picture.mode == "I" and picture.format not in ("PNG", "PPM"):  # those have 16 bits at most
            raise ValueError("its grey is in 32 bits; expected 8 or 16")
        picture = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    return picture.convert("RGB")


def fitted(picture: Image.Image, size: int, shorter: int, resize: str, interpolation: str = "bilinear") -> np.ndarray:
    """Resized to (size, size, 3) uint8; "crop" is torchvision's Resize(shorter) and CenterCrop(size), to the pixel."""
    how = INTERPOLATIONS[interpolation]
    if resize == "squash":
        return np.asarray(picture.resize((size, size), how))
    width, height = picture.size
    longer = int(shorter * max(width, height) / min(width, height))
    picture = picture.resize((shorter, longer) if width <= height else (longer, shorter), how)
    # Offsets round half to even; where the picture is the smaller, it is padded with black, left and top the less.
    left, top = (round((s - size) / 2) if s >= size else -((size - s) // 2) for s in picture.size)
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def _listed(folder: Path) -> list[str]:
    """The relative posix paths of a folder's pictures, sorted; links are followed, and no folder is entered twice."""

    def refuse(error: OSError) -> None:
        raise InputError(f"the folder {error.filename!r} cannot be listed: {error.strerror}") from error

    names, seen = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        inside = Path(parent).relative_to(folder)
        pictures = (f for f in files if not f.startswith(".") and Path(f).suffix.lower() in _EXTENSIONS)
        names += [(inside / f).as_posix() for f in pictures]
    return sorted(names)
