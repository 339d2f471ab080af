"""Features as they are written on the command line: `features.10:9`, `features.10:0-63@middle`, `features.10:D.npy`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxcircuits.errors import InputError
from jaxcircuits.features import Features, Position, find_layer
from jaxcircuits.layers import Layer
from weights_conversion.errors import reason
from weights_conversion.guards import check_array, file_size

NUMBER = "([0-9]{1,18})"


def parse(text: str, layers: Mapping[str, Layer], *, objective: str = "abs") -> Features:
    """Read a feature as it is written on the command line.

    Args:
        text: `LAYER:CHANNEL`, `LAYER:A-B` (both included), `LAYER:*` or `LAYER:FILE.npy` (directions), each of them
            possibly followed by `@H,W`, `@middle` or `@argmax`.
        layers: the model's; positions are those of images, which are not known here, and not checked.
        objective: as for `Features`.

    Raises:
        InputError: the text has another form, or names what the model does not have.
    """
    layer, colon, rest = text.partition(":")
    what, at, where = rest.rpartition("@") if "@" in rest and not rest.endswith(".npy") else (rest, "", "")
    if not (layer and colon and what) or bool(at) != bool(where):
        raise InputError(
            f"{text!r} is no feature; expected LAYER:CHANNEL, LAYER:A-B, LAYER:* or LAYER:FILE.npy, then @H,W"
        )
    position: Position = None
    if at:
        numbers = re.fullmatch(rf"{NUMBER},{NUMBER}", where)
        position = (int(numbers[1]), int(numbers[2])) if numbers else where  # pyright: ignore[reportAssignmentType]
    options = {"position": position, "objective": objective}
    if what.endswith(".npy"):
        rows = np.atleast_2d(_directions(what))
        names = [f"{Path(what).stem}-{row}" for row in range(len(rows))]
        return Features(layer, directions=rows, names=names, **options).resolve(layers, places=False)
    numbers = re.fullmatch(rf"{NUMBER}(?:-{NUMBER})?", what)
    if what != "*" and not numbers:
        raise InputError(f"{text!r} names no channel; expected a number, a range A-B, * or a FILE.npy of directions")
    if not numbers:
        return Features(layer, **options).resolve(layers, places=False)
    first, last = int(numbers[1]), int(numbers[2] or numbers[1])
    if last < first:
        raise InputError(f"{text!r} runs backwards; expected A-B with A at most B")
    outputs = find_layer(layers, layer).outputs
    if last >= outputs:
        raise InputError(f"{layer!r} has no channel {last}; its channels are 0 to {outputs - 1}")
    return Features(layer, range(first, last + 1), **options).resolve(layers, places=False)


def _directions(file: str) -> np.ndarray:
    try:
        size = file_size(file)
        with open(file, "rb") as content:  # not np.load, which opens archives as well
            check_array(content, size)
            directions = np.lib.format.read_array(content, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"there is no file {file!r}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file!r} is no .npy file of numbers: {reason(error)}") from None
    if directions.dtype.kind not in "fiu" or directions.ndim not in (1, 2) or not directions.shape[-1]:
        raise InputError(
            f"{file!r} holds {directions.dtype} of shape {directions.shape}; expected numbers of shape (C,) or (F, C)"
        )
    return directions
