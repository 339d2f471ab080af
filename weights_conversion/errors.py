"""The one exception of this package."""

import textwrap

LONGEST = 2000  # characters of a message: names in files may be of any length


class ConversionError(ValueError):
    """Weights that cannot be read, converted or written. Its message is one sentence for a person."""

    def __init__(self, message: str) -> None:
        super().__init__(sentence(message))


def reason(err: BaseException) -> str:
    """The gist of somebody else's error, fit for the end of a sentence."""
    text = err.strerror if isinstance(err, OSError) and err.strerror else str(err).strip()
    first_line = (text.splitlines() or [type(err).__name__])[0]
    return textwrap.shorten(first_line.split(". ")[0].rstrip(" .:"), 200, placeholder=" ...")


def sentence(text: str) -> str:
    """A message in one line that can be printed; of a very long one the middle is left out."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST * 3 // 4]} [...] {text[-LONGEST // 8 :]}"
    return printable(text)


def printable(text: str) -> str:
    """Characters that would move a terminal's cursor, or cannot be printed, as escape sequences."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
