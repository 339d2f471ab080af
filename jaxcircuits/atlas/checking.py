"""What `atlas.json` and chunks must hold before anything is made of it: whoever wrote them could write checksums, too.

Each function raises a ValueError, a KeyError or a TypeError; a ValueError's message is the end of a sentence.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcircuits.ablation import ABLATIONS
from jaxcircuits.circuit import KEY, TYPES, check_types, tame
from jaxcircuits.criteria import CRITERIA, STEPS
from weights_conversion.guards import parse_json

NUMBERS = {"relevant": np.int32, "kept": np.int32, "effective": np.int32, "correlation": np.float64}
SCORES = {"float16": np.float16, "float32": np.float32}
MOST_ABOUT = 2**20  # bytes that a chunk may have besides its arrays and what its features are called

_TYPES: Mapping[str, Any] = {key: TYPES[key] for key in ("model", "weights", "images", "criterion")} | {
    "ablation": (str,),
    "granularity": (str,),
    "steps": (int, None),
    "scores": (str, None),
    "amounts": (list,),
    "groups": (list,),
}
_GROUP: Mapping[str, Any] = {
    "folder": (str,),
    "layer": (str,),
    "position": (str, list, None),
    "objective": (str,),
    "shapes": {},
    "chunk": (int,),
    "batch": (int,),
}


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """`atlas.json`: everything that is ever read of it has the right type, and no folder leads out of the atlas."""
    check_types(manifest, _TYPES)
    for key, known in (("criterion", CRITERIA), ("ablation", ABLATIONS), ("scores", (None, *SCORES))):
        if manifest[key] not in known:
            raise ValueError(f"its {key} is {manifest[key]!r}")
    amounts = manifest["amounts"]
    if not amounts or any(not _is_amount(amount) or set(amount) != set(amounts[0]) for amount in amounts):
        raise ValueError("its amounts are not numbers of kernels, or fractions over 0 and at most 1")
    if manifest["steps"] is None and manifest["criterion"] in STEPS:
        raise ValueError(f"it has no steps, which {manifest['criterion']} has")
    groups = manifest["groups"]
    if not groups:
        raise ValueError("it has no groups of features")
    for group in groups:
        _check_group(group)
    folders = [group["folder"] for group in groups]
    if len({folder.lower() for folder in folders}) < len(folders):
        raise ValueError("two of its groups have one folder")
    shapes: dict[str, Any] = {}
    for name, shape in itertools.chain.from_iterable(group["shapes"].items() for group in groups):
        if shapes.setdefault(name, shape) != shape:
            raise ValueError(f"its groups do not agree on the shape of {name!r}")


def _is_amount(amount: Any) -> bool:
    if not isinstance(amount, dict) or len(amount) != 1:
        return False
    ((name, value),) = amount.items()
    if name == "kernels":
        return type(value) is int and 1 <= value < 2**63
    return name == "keep" and type(value) in (int, float) and 0 < value <= 1


def _check_group(group: Any) -> None:
    check_types(group, _GROUP)
    folder, shapes = group["folder"], group["shapes"]
    if not folder or folder != tame(folder) or folder.startswith(".") or len(folder) > 200:
        raise ValueError(f"its folder {folder!r} is no name of a folder in it")
    if group["chunk"] < 1 or group["batch"] < 1:
        raise ValueError(f"the chunks of its folder {folder!r} are not of one feature or more")
    if not isinstance(shapes, dict) or not shapes:
        raise ValueError(f"its folder {folder!r} has no layers")
    for name, shape in shapes.items():
        if not isinstance(shape, list) or len(shape) != 2 or not all(type(s) is int and 0 < s < 2**31 for s in shape):
            raise ValueError(f"the shape of {name!r} is not (O, I)")
    channels, names = group.get("channels", []), group.get("names", [])
    if not isinstance(channels, list) or not all(type(c) is int and 0 <= c < 2**31 for c in channels):
        raise ValueError(f"the channels of its folder {folder!r} are not numbers")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"the directions of its folder {folder!r} have no names")


Arrays = Mapping[str, tuple[str, tuple[int, ...]]]
"""{array: (dtype, shape)} of all that a chunk holds."""


def expected(manifest: Mapping[str, Any], shapes: Mapping[str, tuple[int, int]], features: int) -> Arrays:
    """What a chunk of so many features must hold, and nothing else."""
    levels, scores = len(manifest["amounts"]), manifest["scores"]
    each = (levels,) if manifest["criterion"] in STEPS else ()
    arrays: dict[str, tuple[str, tuple[int, ...]]] = {
        name: (np.dtype(kind).name, (features,) if name == "relevant" else (features, levels))
        for name, kind in NUMBERS.items()
    }
    for name, (o, i) in shapes.items():
        arrays[f"mask/{name}"] = ("uint8", (features, levels, -(-o * i // 8)))
        if scores is not None:
            arrays[f"score/{name}"] = (scores, (features, *each, o, i))
        if manifest["ablation"] == "mean":
            arrays[f"offset/{name}"] = ("float32", (features, levels, o))
    return arrays if scores is None else arrays | {"scale": ("float32", (features,))}


def most_bytes(arrays: Arrays, labels: tuple[str, ...]) -> int:
    """A chunk's file has no more bytes; a character of a label may take 14 of them."""
    return sum(math.prod(shape) * np.dtype(kind).itemsize for kind, shape in arrays.values()) + (
        MOST_ABOUT + sum(16 + 14 * len(label) for label in labels)
    )


def check_arrays(
    arrays: Mapping[str, np.ndarray], wanted: Arrays, shapes: Mapping[str, tuple[int, int]], about: Mapping[str, Any]
) -> None:
    """A chunk's arrays have their types and shapes, masks no kernels beyond the last, and numbers are finite."""
    for name, (kind, shape) in wanted.items():
        if name not in arrays or (arrays[name].dtype.name, arrays[name].shape) != (kind, shape):
            raise ValueError(f"corrupt (its {name!r} is not {kind} of shape {shape})")
        if name.startswith(("score/", "offset/", "scale")) and not np.isfinite(arrays[name]).all():
            raise ValueError(f"corrupt (its {name!r} holds what is no number)")
    for name, (o, i) in shapes.items():
        if (arrays[f"mask/{name}"][..., -1] & ((1 << (-o * i % 8)) - 1)).any():
            raise ValueError(f"corrupt (its mask of {name!r} has kernels that the layer has not)")
    if not isinstance(about.get("versions"), dict) or not isinstance(about.get("sparse"), bool | str | None):
        raise ValueError("corrupt (it does not say how it was computed)")


def about(content: bytes) -> dict[str, Any]:
    """A safetensors file's metadata: its header is JSON behind eight bytes that say how long it is."""
    try:
        header = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
        found = parse_json(header["__metadata__"][KEY])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"corrupt (its header is none: {error})") from None
    if not isinstance(found, dict):
        raise ValueError("corrupt (its header says nothing of it)")
    return found
