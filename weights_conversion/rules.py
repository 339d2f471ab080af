"""Leaf by leaf between PyTorch's names and orders and Flax's, every rule beside its inverse. No model is known here."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from weights_conversion.errors import ConversionError

StateDict = dict[str, np.ndarray]
"""Arrays by PyTorch's names, in PyTorch's order of axes: convolutions (O, I, h, w), dense layers (O, I), layer scales
(C, 1, 1)."""

Variables = dict[str, Any]
"""Nested dictionaries of arrays, as `module.init` returns them: convolutions (h, w, I, O), dense layers (I, O), layer
scales (1, 1, C)."""

NAMES = {  # Flax's collection and leaf -> PyTorch's name
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("params", "layer_scale"): "layer_scale",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}

LeafPath = tuple[str, ...]
"""Where a leaf is in Flax: collection, modules, leaf."""

COUNTER = "num_batches_tracked"
"""BatchNorm's step counter: Flax has no use for it, so it is carried along for the way back."""


@dataclass(frozen=True)
class Converted:
    """Weights in Flax's form, and what the way back to PyTorch needs besides.

    Attributes:
        variables: NumPy arrays in the structure of the template.
        extras: PyTorch entries without a place in Flax (BatchNorm's step counters).
        missing: PyTorch names that the source lacked and was allowed to lack; their leaves hold zeros.
    """

    variables: Variables
    extras: StateDict
    missing: tuple[str, ...] = ()


def to_flax(
    state: Mapping[str, np.ndarray], template: Mapping[str, Any], *, optional: Callable[[str], bool] = lambda key: False
) -> Converted:
    """Fills a template with PyTorch weights.

    Args:
        state: weights by PyTorch name.
        template: variables, or only their shapes: `jax.eval_shape(module.init, key, x)`.
        optional: tells which PyTorch names the source may lack.

    Raises:
        ConversionError: names all keys that are missing, that the template has no place for, or whose shape or
            dtype differs.
    """
    places = _places(template)
    carried = {key: value for key, value in state.items() if _counts_batches(key, places)}
    lacking = tuple(key for key in places if key not in state)
    mismatches = {key: _mismatch(state[key], *place) for key, place in places.items() if key in state}
    problems = {
        "missing": [key for key in lacking if not optional(key)],
        "not in the model": [key for key in state if key not in places and key not in carried],
        "of the wrong kind": [key + mismatch for key, mismatch in mismatches.items() if mismatch],
    }
    if any(problems.values()):
        groups = (f"{what}: {', '.join(keys)}" for what, keys in problems.items() if keys)
        raise ConversionError("the weights do not fit the model; " + "; ".join(groups))

    def fill(path: LeafPath, leaf: Any) -> np.ndarray:
        key = _torch_name(path, leaf)
        if key in lacking:
            return np.zeros(leaf.shape, leaf.dtype)
        return _arranged(state[key], _flax_axes(path, state[key].ndim))

    return Converted(_map_leaves(fill, template), carried, lacking)


def to_torch(
    variables: Mapping[str, Any], *, extras: Mapping[str, np.ndarray] | None = None, missing: Collection[str] = ()
) -> StateDict:
    """The inverse of `to_flax`, bit for bit: C-contiguous arrays by PyTorch name.

    Args:
        variables: arrays in Flax's form.
        extras: entries to carry along, as in `Converted`.
        missing: names to leave out, as in `Converted`.
    """
    leaves = {key: (path, np.asarray(leaf)) for key, (path, leaf) in _places(variables).items() if key not in missing}
    state = {key: _arranged(value, _torch_axes(path, value.ndim)) for key, (path, value) in leaves.items()}
    return state | dict(extras or {})


def digest(state: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes: the same for the same weights, however they were delivered."""
    total = hashlib.sha256()
    for key in sorted(state):
        if key.rpartition(".")[2] != COUNTER:  # some files have the counters and some do not
            value = state[key]
            little = np.asarray(value, value.dtype.newbyteorder("<"), order="C")
            total.update(f"{key} {value.dtype.name} {value.shape}\n".encode())
            total.update(little.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _places(variables: Mapping[str, Any]) -> dict[str, tuple[LeafPath, Any]]:
    """PyTorch name -> where the leaf is in Flax, and the leaf."""
    places = {}
    for path, leaf in _leaves(variables):
        key = _torch_name(path, leaf)
        if key in places:
            raise ConversionError(f"two Flax variables would have the PyTorch name {key}")
        places[key] = (path, leaf)
    return places


def _leaves(tree: Mapping[str, Any], path: LeafPath = ()) -> Iterator[tuple[LeafPath, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _map_leaves(function: Callable[[LeafPath, Any], Any], tree: Mapping[str, Any], path: LeafPath = ()) -> Variables:
    return {
        name: _map_leaves(function, value, (*path, name))
        if isinstance(value, Mapping)
        else function((*path, name), value)
        for name, value in tree.items()
    }


def _torch_name(path: LeafPath, leaf: Any) -> str:
    name = NAMES.get((path[0], path[-1]))
    if name is None or (path[-1] == "kernel" and len(leaf.shape) < 2):
        raise ConversionError(f"there is no rule for the Flax variable {'/'.join(path)} of shape {tuple(leaf.shape)}")
    return ".".join((*path[1:-1], name))


def _torch_axes(path: LeafPath, n: int) -> tuple[int, ...]:
    """Where PyTorch's axes are in Flax's array: (..., I, O) -> (O, I, ...) for kernels, (..., C) -> (C, ...) for layer
    scales."""
    if path[-1] == "layer_scale":
        return (n - 1, *range(n - 1))
    return (n - 1, n - 2, *range(n - 2)) if path[-1] == "kernel" else tuple(range(n))


def _flax_axes(path: LeafPath, n: int) -> tuple[int, ...]:
    """The inverse: (O, I, ...) -> (..., I, O) for kernels, (C, ...) -> (..., C) for layer scales."""
    if path[-1] == "layer_scale":
        return (*range(1, n), 0)
    return (*range(2, n), 1, 0) if path[-1] == "kernel" else tuple(range(n))


def _arranged(value: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    # Not np.ascontiguousarray, which gives scalars an axis.
    return np.asarray(value.transpose(axes), order="C")


def _mismatch(value: np.ndarray, path: LeafPath, leaf: Any) -> str:
    """What an array is and what the template expects, or nothing if they agree."""
    shape = tuple(leaf.shape[axis] for axis in _torch_axes(path, len(leaf.shape)))
    found, expected = f"{value.dtype.name} {value.shape}", f"{np.dtype(leaf.dtype).name} {shape}"
    return f" is {found}, expected {expected}" if found != expected else ""


def _counts_batches(key: str, places: Collection[str]) -> bool:
    """Whether a key is the step counter of a BatchNorm that the template has."""
    module, _, name = key.rpartition(".")
    return name == COUNTER and f"{module}.running_mean".lstrip(".") in places
