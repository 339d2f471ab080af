"""The one exception that means "the input was wrong", and hints for mistyped names."""

import difflib
from collections.abc import Iterable

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
