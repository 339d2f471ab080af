"""The one exception that means "the input was wrong", and hints for mistyped names."""

import difflib
import operator
from collections.abc import Iterable
from typing import Any

from weights_conversion.errors import sentence


class InputError(ValueError):
    """Input that cannot be used. Its message is one sentence; the command line prints it and exits with 2."""

    def __init__(self, message: str) -> None:
        super().__init__(sentence(message))


def nearest(name: str, known: Iterable[str], *, shown: int = 4) -> str:
    """The known names closest to a mistyped one, as the end of a sentence: "the nearest are 'a', 'b'"."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=shown, cutoff=0.4) or known[:shown]
    return "the nearest are " + ", ".join(repr(k) for k in close) if close else "there are none"


# Nobody waits for so many steps, and arrays of one number for each of them still fit in memory.
MOST = 1_000_000


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise an InputError unless this is a whole number from so many on, and of a size that can be."""
    if not _whole(value) or value < least:
        raise InputError(f"{name} is {value!r}; expected a whole number of at least {least}")
    if value > MOST:
        raise InputError(f"{name} is {value}; expected at most {MOST}")


def check_seed(seed: Any) -> None:
    """Raise an InputError unless this is an unsigned 32-bit number, as all random generators take it."""
    if not _whole(seed) or not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed!r}; expected a whole number from 0 to {2**32 - 1}")


def _whole(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)
