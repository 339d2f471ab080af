"""What a circuit preserves: channels or directions of a layer, where they are looked at, and the number made of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcircuits.errors import InputError, nearest
from jaxcircuits.layers import Layer

OBJECTIVES = ("abs", "sum", "max")
Position = Literal["middle", "argmax"] | tuple[int, int] | np.ndarray | None
Place = Literal["middle", "argmax", "given"] | tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class Features:
    """F features of one layer: its channels, or directions in the space of its channels.

    The value of feature f on image n is the map a[f, n, h, w] = sum over o of d[f, o] * y[n, h, w, o], where y is the
    layer's output before the nonlinearity and d the feature's direction (for a channel, one-hot).

    Args:
        layer: a convolution or dense layer by its module path, such as "features.10".
        channels: the channels, or all of the layer if neither they nor directions are given.
        directions: (F, O) or (O,), used as given, not normalised.
        position: where the map is looked at: everywhere (None), at (h, w), in the "middle" = (H // 2, W // 2), at each
            image's own "argmax" in the full network, or an (N, 2) array with one position an image.
        objective: the number of an image that is differentiated: "abs" (sum over positions of |a|), "sum" (of a) or
            "max" (the largest a).
        names: what each direction is called in file names; "direction-0" and so on if not given.

    Raises:
        InputError: channels and directions together, an unknown objective or position.
    """

    layer: str
    channels: Sequence[int] | None = None
    directions: np.ndarray | None = field(default=None, kw_only=True)
    position: Position = field(default=None, kw_only=True)
    objective: str = field(default="abs", kw_only=True)
    names: Sequence[str] | None = field(default=None, kw_only=True)

    def __post_init__(self):
        if self.channels is not None and self.directions is not None:
            raise InputError("features are either channels or directions, not both")
        if self.objective not in OBJECTIVES:
            raise InputError(f"unknown objective {self.objective!r}; expected one of {', '.join(OBJECTIVES)}")
        if self.channels is not None:
            channels = list(self.channels) if isinstance(self.channels, Iterable) else [self.channels]
            if not channels or not all(isinstance(c, (int, np.integer)) for c in channels):
                raise InputError(f"channels are whole numbers, at least one; got {self.channels!r}")
            object.__setattr__(self, "channels", tuple(int(c) for c in channels))
        if self.directions is not None:
            directions = np.atleast_2d(_array(self.directions, np.float32)).copy()  # the caller's may change
            if directions.ndim != 2 or not directions.size or not np.isfinite(directions).all():
                raise InputError(f"directions are finite numbers of shape (F, O); got shape {directions.shape}")
            if not directions.any(axis=1).all():
                raise InputError(f"direction {int(np.argmin(directions.any(axis=1)))} is zero everywhere")
            object.__setattr__(self, "directions", directions)
            given = [f"direction-{row}" for row in range(len(directions))] if self.names is None else self.names
            names = tuple(map(str, given))
            if len(names) != len(directions):
                raise InputError(f"there are {len(names)} names for {len(directions)} directions")
            object.__setattr__(self, "names", names)
        elif self.names is not None:
            raise InputError("names are for directions; channels go by their numbers")
        object.__setattr__(self, "position", _checked_position(self.position))

    def __len__(self) -> int:
        if self.directions is not None:
            return len(self.directions)
        if self.channels is None:
            raise InputError(f"all channels of {self.layer!r} are meant, and only a model knows how many; use resolve")
        return len(self.channels)

    def resolve(self, layers: Mapping[str, Layer], *, places: bool = True) -> Features:
        """The same features with channels spelled out, checked against a model's layers.

        Args:
            layers: by name, for images of the size that is looked at.
            places: check positions as well; where the layers are of another size of images they may be outside.

        Raises:
            InputError: no such layer, one that cannot be a target, a channel or position outside it, or directions of
                another width.
        """
        layer = find_layer(layers, self.layer)
        if layer.trouble:
            raise InputError(layer.trouble)
        channels = self.channels
        if self.directions is not None:
            if self.directions.shape[1] != layer.outputs:
                raise InputError(
                    f"directions have {self.directions.shape[1]} entries; {self.layer!r} has {layer.outputs} channels"
                )
        elif channels is None:
            channels = tuple(range(layer.outputs))
        elif wrong := [c for c in channels if not 0 <= c < layer.outputs]:
            raise InputError(f"{self.layer!r} has no channel {wrong[0]}; its channels are 0 to {layer.outputs - 1}")
        if places and self.position is not None and not isinstance(self.position, str):
            size, given = np.array(layer.positions), np.atleast_2d(self.position)
            if (given < 0).any() or (given >= size).any():
                bad = tuple(int(p) for p in given[((given < 0) | (given >= size)).any(1)][0])
                raise InputError(f"position {bad} is outside the map of {self.layer!r}, which is {size[0]} x {size[1]}")
        return replace(self, channels=channels)

    def matrix(self, outputs: int) -> np.ndarray:
        """The directions d (F, O) float32; one-hot rows for channels."""
        if self.directions is not None:
            return self.directions
        return np.eye(outputs, dtype=np.float32)[list(self.channels or ())]

    def __getitem__(self, rows: int | slice | np.ndarray) -> Features:
        """Some of the features, by a row number, a slice, or an array of row numbers."""
        chosen = np.atleast_1d(np.arange(len(self))[rows])
        if self.directions is not None:
            names = [(self.names or ())[row] for row in chosen]
            return replace(self, directions=self.directions[chosen], names=names)
        return replace(self, channels=tuple((self.channels or ())[row] for row in chosen))

    def __iter__(self) -> Iterator[Features]:
        """One feature after another."""
        return (self[i : i + 1] for i in range(len(self)))

    @property
    def labels(self) -> tuple[str, ...]:
        """How each feature is written, as on the command line: "features.10:9@middle"."""
        names = self.names or self.channels or ()
        place = ",".join(map(str, self.place)) if isinstance(self.place, tuple) else self.place
        return tuple(f"{self.layer}:{name}{f'@{place}' if place else ''}" for name in names)

    @property
    def identities(self) -> tuple[str, ...]:
        """The labels, with a digest of each direction: two sets of directions may have the same names."""
        if self.directions is None:
            return self.labels
        digests = [hashlib.sha256(np.ascontiguousarray(row).data).hexdigest() for row in self.directions]
        return tuple(f"{label} {digest}" for label, digest in zip(self.labels, digests, strict=True))

    @property
    def place(self) -> Place:
        """The position, or "given" where it is an array: a constant for `jit`."""
        return "given" if isinstance(self.position, np.ndarray) else self.position

    def places(self, images: int, spare: int = 0) -> np.ndarray:
        """The given positions, one for each image, zeros where none are given; then `spare` zeros: (N + spare, 2).

        Raises:
            InputError: there are more or fewer positions than images.
        """
        if not isinstance(self.position, np.ndarray):
            return np.zeros((images + spare, 2), np.int32)
        if len(self.position) != images:
            raise InputError(f"there are {len(self.position)} positions for {images} images")
        return np.pad(self.position.astype(np.int32), ((0, spare), (0, 0)))


def joined(features: Iterable[Features]) -> list[Features]:
    """Neighbours that differ in nothing but their channels as one, so that they share their passes."""
    result: list[Features] = []
    for new in features:
        last = result[-1] if result else None
        alike = last is not None and (last.layer, last.place, last.objective) == (new.layer, new.place, new.objective)
        if last is None or not alike or not (last.channels and new.channels) or new.place == "given":
            result.append(new)
        else:
            result[-1] = replace(last, channels=(*last.channels, *new.channels))
    return result


def find_layer(layers: Mapping[str, Layer], name: str) -> Layer:
    """The layer of that name, or an InputError that gives the nearest names."""
    if name not in layers:
        raise InputError(f"there is no layer {name!r}; {nearest(name, layers)}")
    return layers[name]


def _checked_position(position) -> Position:
    if position is None or (isinstance(position, str) and position in ("middle", "argmax")):
        return position
    if not isinstance(position, str):
        places = _array(position)
        if places.dtype.kind in "iu" and places.shape == (2,):
            return int(places[0]), int(places[1])
        if places.dtype.kind in "iu" and places.ndim == 2 and places.shape[1:] == (2,):
            return places.copy()  # the caller's may change
    raise InputError(
        f"unknown position {position!r}; expected (h, w), 'middle', 'argmax' or an (N, 2) array of numbers"
    )


def _array(value, dtype=None) -> np.ndarray:
    """Any value as an array, an empty one if it cannot be one, as words or rows of different lengths cannot."""
    try:
        with np.errstate(over="ignore"):  # too large for float32 is infinite
            return np.asarray(value, dtype)
    except (TypeError, ValueError):
        return np.empty(0)


def place_weights(place: Place, maps: Array, given: Array) -> Array:
    """Where the feature is looked at: 1 there and 0 elsewhere, of a shape that broadcasts to the maps' (F, N, H, W).

    Args:
        place: `Features.place`.
        maps: the feature in the *full* network, whose argmax counts.
        given: the images' positions (N, 2), read only where the place is "given".
    """
    height, width = maps.shape[2:]
    if place is None:
        return jnp.ones((1, 1, 1, 1))
    if place == "argmax":
        rows, columns = strongest(maps)
    elif place == "given":
        rows, columns = given[None, :, 0], given[None, :, 1]
    else:
        row, column = (height // 2, width // 2) if place == "middle" else place
        rows, columns = jnp.full((1, 1), row), jnp.full((1, 1), column)
    return _only(rows, columns, maps)


def _only(rows: Array, columns: Array, maps: Array) -> Array:
    """1 at these places and 0 elsewhere on maps (F, N, H, W)."""
    height, width = maps.shape[2:]
    here = jnp.arange(height)[:, None] == rows[..., None, None]
    return (here & (jnp.arange(width) == columns[..., None, None])).astype(maps.dtype)


def strongest(maps: Array) -> tuple[Array, Array]:
    """Row and column of the largest value of each map, the first in row-major order: (F, N, H, W) -> twice (F, N)."""
    best = maps.reshape(*maps.shape[:2], -1).argmax(-1)
    return best // maps.shape[3], best % maps.shape[3]


def cotangents(objective: str, maps: Array, where: Array) -> Array:
    """dL_n/da for every feature and image: maps and result (F, N, H, W), `where` as `place_weights` gives it.

    As in PyTorch, |a| has gradient 0 at a = 0, and of equal largest values the first in row-major order has it all.
    """
    if objective == "abs":
        return jnp.sign(maps) * where
    if objective == "sum":
        return jnp.broadcast_to(where, maps.shape)
    return _only(*strongest(jnp.where(where > 0, maps, -jnp.inf)), maps)
