"""The code blocks of README.md and of the pages in docs/."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/**/*.md")))
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^>]*) -->\n)?```(?P<language>\S*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)


class Block(NamedTuple):
    """One block.

    Attributes:
        page, line: where its code begins.
        language: what stands behind the fence.
        code: its lines.
        mark: what a comment above it says: "run", "run by tests/NAME.py" (another test does), or "not run: WHY".
        printed: for Python, the `text` block behind it.
    """

    page: str
    line: int
    language: str
    code: str
    mark: str
    printed: str | None = None


def blocks(page: str) -> list[Block]:
    """All blocks of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = list(BLOCK.finditer(text))
    made = []
    for match, after in zip(found, [*found, None][1:], strict=True):
        printed = None
        if match["language"] == "python" and after and after["language"] == "text":
            printed = after["code"] if not text[match.end() : after.start()].strip() else None
        line = text.count("\n", 0, match.start("code")) + 1
        made.append(Block(page, line, match["language"], match["code"], match["mark"] or "", printed))
    return made


def commands(code: str) -> Iterator[str]:
    """The commands of a bash block."""
    for line in code.replace("\\\n", " ").splitlines():
        yield from filter(None, map(str.strip, re.split(r"&&|;", line.partition(" # ")[0])))


def same_text(said: str, shown: str) -> bool:
    """Whether two texts have the same words, and numbers that differ by no more than other versions may cause."""
    one, other = (re.split(r"([\s\[\](){},=]+)", text.strip()) for text in (said, shown))
    one, other = ([word for part in parts for word in part.split()] for parts in (one, other))
    return len(one) == len(other) and all(map(_alike, one, other))


def _alike(a: str, b: str) -> bool:
    try:
        return abs(float(a) - float(b)) <= 0.02 + 0.02 * abs(float(b))
    except ValueError:
        return a == b
