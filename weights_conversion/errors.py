"""The one exception of this package."""

import textwrap


class ConversionError(ValueError):
    """Weights that cannot be read, converted or written. Its message is one sentence for a person."""


def reason(err: BaseException) -> str:
    """The gist of somebody else's error, fit for the end of a sentence."""
    text = err.strerror if isinstance(err, OSError) and err.strerror else str(err).strip()
    first_line = (text.splitlines() or [type(err).__name__])[0]
    return textwrap.shorten(first_line.split(". ")[0].rstrip(" .:"), 200, placeholder=" ...")
