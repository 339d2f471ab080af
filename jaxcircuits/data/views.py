"""Random views of a few images, for what is learned from them: no two alike, and as unlike as pictures may be.

A view is a crop of one image, of random place, scale, proportions and direction, in random colours; often with pieces
of another one, or of one colour, laid over it.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from jaxcircuits.data.files import BILINEAR
from jaxcircuits.errors import InputError

# Side of a crop as a share of the image's, and how much longer one side may be than the other.
SMALLEST, LONGER = 0.35, 1.3
# How often a view is turned by any angle, covered in part, blurred, in black and white negative, full of noise.
TURNED, COVERED, BLURRED, INVERTED, NOISY = 0.3, 0.5, 0.2, 0.1, 0.2
# Pieces that may be laid over a view.
PIECES = 6


class Views:
    """Draws views of images (M, H, W, C), C = 1 or 3, normalised or not; all values stay in the images' range.

    Args:
        images: the images, in memory.
        size: height and width of a view.
        seed: of all that is random.

    Raises:
        InputError: the images have another number of channels.
    """

    def __init__(self, images: np.ndarray, size: tuple[int, int], seed: int) -> None:
        if images.shape[-1] not in (1, 3):
            raise InputError(f"the images have {images.shape[-1]} channels; views are made of images with 1 or 3")
        self.low, self.range = images.min((0, 1, 2)), np.maximum(np.ptp(images, (0, 1, 2)), 1e-6)
        bytes_ = np.round(255 * (images - self.low) / self.range).astype(np.uint8)
        self.pictures = [Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in bytes_]
        self.size, self.seed = size, seed

    def block(self, step: int, number: int) -> np.ndarray:
        """The views of one step of training, always the same ones: (number, *size, C) float32."""
        drawn = np.stack([self._view(np.random.default_rng([self.seed, step, i])) for i in range(number)])
        return (drawn * self.range + self.low).astype(np.float32)

    def _view(self, rng: np.random.Generator) -> np.ndarray:
        view = _recoloured(rng, self._crop(rng))
        if rng.random() < COVERED:
            other = _recoloured(rng, self._crop(rng))
            for mask in _pieces(rng, self.size):
                cover = other if rng.random() < 0.5 else rng.random(view.shape[-1], np.float32)
                view = np.where(mask, cover, view)
        return view

    def _crop(self, rng: np.random.Generator) -> Image.Image:
        picture = self.pictures[rng.integers(len(self.pictures))]
        share, longer = SMALLEST ** rng.random(), LONGER ** rng.uniform(-0.5, 0.5)
        width, height = (
            min(share * longer**sign * side, side) for sign, side in zip((1, -1), picture.size, strict=True)
        )
        middle = [
            rng.uniform(side / 2, whole - side / 2) for side, whole in zip((width, height), picture.size, strict=True)
        ]
        angle = rng.uniform(0, 2 * np.pi) if rng.random() < TURNED else 0.0
        across = np.array([np.cos(angle), np.sin(angle)]) * width / self.size[1] * rng.choice([-1, 1])
        down = np.array([-np.sin(angle), np.cos(angle)]) * height / self.size[0]
        corner = middle - across * self.size[1] / 2 - down * self.size[0] / 2
        a, b, c, d, e, f = np.array([across, down, corner]).T.reshape(-1).tolist()
        view = picture.transform((self.size[1], self.size[0]), Image.Transform.AFFINE, (a, b, c, d, e, f), BILINEAR)
        return view.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5))) if rng.random() < BLURRED else view


def _recoloured(rng: np.random.Generator, picture: Image.Image) -> np.ndarray:
    """Other saturation, contrast, brightness and tint; now and then inverted, noisy, its colours exchanged: 0 ... 1."""
    view = np.asarray(picture, np.float32).reshape(*picture.size[::-1], -1) / 255
    channels = view.shape[-1]
    if rng.random() < 0.3:
        view = view[..., rng.permutation(channels)]
    grey = view.mean(-1, keepdims=True)
    view = grey + (view - grey) * np.float32(rng.uniform(0, 1.8))
    scale = np.exp(0.3 * rng.standard_normal() + 0.15 * rng.standard_normal(channels)).astype(np.float32)
    mean = view.mean()
    view = (view - mean) * scale + np.float32(mean + 0.1 * rng.standard_normal())
    if rng.random() < INVERTED:
        view = 1 - view
    if rng.random() < NOISY:
        view = view + rng.standard_normal(view.shape, np.float32) * np.float32(rng.uniform(0, 0.06))
    return np.clip(view, 0, 1)


def _pieces(rng: np.random.Generator, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Ellipses, polygons and stripes: masks (*size, 1) bool."""
    for _ in range(rng.integers(1, PIECES + 1)):
        mask = Image.new("1", (size[1], size[0]))
        draw = ImageDraw.Draw(mask)
        middle, radius = rng.random(2) * size[::-1], max(size) * 0.06 * 8 ** rng.random()
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.choice([2, 3, 4, 5, 30])))
        around = np.stack([np.cos(angles), np.sin(angles)], -1)
        if len(angles) == 2:
            ends = np.concatenate([middle - 2 * max(size) * around[0], middle + 2 * max(size) * around[0]])
            draw.line(ends.tolist(), fill=1, width=max(2, int(radius / 3)))
        else:
            flat = rng.uniform(0.4, 1, 2)
            draw.polygon((middle + radius * flat * around).reshape(-1).tolist(), fill=1)
        yield np.asarray(mask)[..., None]
