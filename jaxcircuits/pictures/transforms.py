"""A picture shaken a little in every step, so that only what survives it is learned: moved, scaled, turned.

References:
    Olah, Mordvintsev, Schubert, "Feature Visualization" (Distill, 2017), "transformation robustness".
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

# The most by which a picture is moved (a share of what the feature sees: stripes moved by their width are lost), scaled
# (a factor) and turned (degrees).
MOVED, SCALED, TURNED = 0.05, 1.1, 10.0


class View(NamedTuple):
    """How a picture is looked at: turned by an angle (radians), scaled, and moved by so many pixels."""

    angle: float | Array
    scale: float | Array
    down: float | Array
    right: float | Array


STILL = View(0.0, 1.0, 0.0, 0.0)


def draw(seed: int, step: int, reach: int) -> View:
    """The view of one step, of features that see `reach` pixels: the same for all pictures, so that what a picture
    becomes does not depend on its neighbours."""
    rng = np.random.default_rng([seed, step])
    angle, scale, down, right = rng.uniform(-1, 1, 4)
    values = [np.deg2rad(TURNED) * angle, SCALED**scale, MOVED * reach * down, MOVED * reach * right]
    return View(*np.array(values, np.float32))


def margin(size: int) -> int:
    """How many pixels a canvas must have around a picture of this size, so that no view leaves it, but for corners."""
    return int(np.ceil(size * (MOVED + (SCALED - 1) / 2)))


def look(canvas: Array, view: View, size: int) -> Array:
    """The middle of canvases (F, P, P, 3) as the view shows it, by bilinear interpolation: (F, size, size, 3).

    Pixel q of the result is the canvas at c + R(angle) (q - b) / scale + (down, right), where c and b are the middles
    of canvas and result; beyond its edge the canvas goes on as it ends.
    """
    whole = canvas.shape[1]
    steps = (jnp.arange(size) - (size - 1) / 2) / view.scale
    cosine, sine = jnp.cos(view.angle), jnp.sin(view.angle)
    rows = (whole - 1) / 2 + cosine * steps[:, None] - sine * steps + view.down
    columns = (whole - 1) / 2 + sine * steps[:, None] + cosine * steps + view.right
    rows, columns = (jnp.clip(places, 0, whole - 1) for places in (rows, columns))
    top, left = (jnp.minimum(jnp.floor(places), whole - 2).astype(jnp.int32) for places in (rows, columns))
    low, near = (rows - top)[..., None], (columns - left)[..., None]
    pixels = canvas.reshape(len(canvas), whole * whole, -1)
    at = top * whole + left

    def beside(offset: int) -> Array:
        return pixels[:, at + offset]

    above = beside(0) * (1 - near) + beside(1) * near
    below = beside(whole) * (1 - near) + beside(whole + 1) * near
    return above * (1 - low) + below * low
