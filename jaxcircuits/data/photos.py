"""Crops of twelve photographs that lie in the wheels of scikit-image and scikit-learn: no download, no network."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcircuits.data.files import BILINEAR
from jaxcircuits.data.images import Pictures
from jaxcircuits.errors import InputError
from jaxcircuits.packages import installed

# Each half has a person, plants or animals, things, a dark scene, a medical picture and one in black and white.
_HALVES = {
    "a": ("astronaut.png", "brick.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "china.jpg"),
    "b": ("camera.png", "chelsea.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg", "flower.jpg"),
}
_IN_SKLEARN = ("china.jpg", "flower.jpg")  # the others are scikit-image's
_CROPS = 4


def from_photos(source: str, size: int) -> Pictures:
    """`photos`, `photos:a` or `photos:b`: square crops of random place and scale, resized to (size, size, 3).

    Raises:
        InputError: if there are no such photos, or a package is not installed.
    """
    half = source.partition(":")[2]
    if source != "photos" and half not in _HALVES:
        raise InputError(f"there are no photos {source!r}; expected photos, photos:a or photos:b")
    paths = [_shipped(name) for name in (_HALVES[half] if half else _HALVES["a"] + _HALVES["b"])]
    photo = lru_cache(maxsize=1)(_decoded)  # the crops of a photograph follow one another, and in one thread

    def read(i: int) -> np.ndarray:
        path, crop = paths[i // _CROPS], i % _CROPS
        whole = photo(path)
        rng = np.random.default_rng([*path.stem.encode(), crop])  # by name: another photograph changes no crop
        side = int(rng.uniform(0.5, 1) * min(whole.size))
        left, top = (int(rng.integers(length - side + 1)) for length in whole.size)
        return np.asarray(whole.resize((size, size), BILINEAR, box=(left, top, left + side, top + side)))

    return Pictures(len(paths) * _CROPS, lambda i: f"{paths[i // _CROPS].stem}#{i % _CROPS}", read, threads=1)


def _decoded(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _shipped(name: str) -> Path:
    package, folder = ("sklearn", "datasets/images") if name in _IN_SKLEARN else ("skimage", "data")
    spec = installed(package, f"the photograph {name}", "demo")
    for location in spec.submodule_search_locations or ():
        if (path := Path(location, folder, name)).is_file():
            return path
    raise InputError(f"the photograph {name} of {package} is missing; expected after pip install 'jaxcircuits[demo]'")
