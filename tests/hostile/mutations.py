"""What is done to JSON, bytes and folders, whatever they mean."""

import json
import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

STRINGS = (
    "", ".", "..", "../../planted", "/etc/passwd", "a/../../../planted", "C:\\x", "nul\0l", "x" * 5000, "é" * 300,
    "-rf",
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "</title></script><!--", "{{7*7}}{% raw %}",
    "\x1b[2J\x1b]0;x\a", "line\nbreak\r\n", "\ud800", "\u202eevil", "\u2028", "$\\frac{$", "%s%n{0}", "~", "~nobody\0",
    "random:" + "9" * 5000, "torchvision:NO", "tfds:mnist/data_dir=..", "photos:c", "middle", "argmax", "snip", "mean",
    "[red]x[/red]", "features.3", "__proto__", "javascript:alert(1)", "=1+1", "NaN", "1e999",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, 2**53, 2**60, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308, 5e-324,
)  # fmt: skip
CONSTANTS = (None, True, False, float("nan"), float("inf"))


def leaf(rng: Random) -> Any:
    return rng.choice(rng.choice((STRINGS, NUMBERS, CONSTANTS, ([], {}, [[]], [1, 2], {"a": 1}, [[1, 2], [3]]))))


def containers(tree: Any) -> list[Any]:
    """All lists and dictionaries in it, that are not empty."""
    found = [tree] if isinstance(tree, dict | list) and tree else []
    for inner in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        found += containers(inner)
    return found


def twisted(rng: Random, tree: Any) -> Any:
    """A copy in which some places hold something else, have other names, are missing or are there twice."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.randint(1, 3)):
        if not (places := containers(tree)):
            return leaf(rng)
        inside = rng.choice(places)
        if isinstance(inside, list):
            at = rng.randrange(len(inside))
            how = rng.randrange(4)
            inside[at : at + 1] = [[], [leaf(rng)], [inside[at]] * 2, [[inside[at]]]][how]
            continue
        key = rng.choice(sorted(inside))
        how, value = rng.randrange(5), inside.pop(key)
        if how == 0:
            inside[rng.choice(STRINGS)] = value
        elif how == 1:
            inside[key] = [value]
        elif how < 4:
            inside[key] = leaf(rng)
    return tree


def json_text(rng: Random, tree: Any) -> bytes:
    """JSON that may be none, or hold what Python's reader takes and nobody else."""
    text = json.dumps(tree)
    how = rng.randrange(14)
    if how == 0:
        text = text[: rng.randrange(len(text) + 1)]
    elif how == 1:
        text = text.replace(rng.choice("0123456789"), "9" * 5000, 1)
    elif how == 2:
        deep = rng.choice((40, 900, 100_000))
        text = text[:-1] + ', "deep": ' + "[" * deep + "]" * deep + "}"
    elif how == 3:
        text = text[:-1] + ', "deep": ' + '{"a":' * rng.choice((40, 900, 20_000)) + "1" + "}" * 900
    elif how == 4:
        return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))
    elif how == 5:
        return scratched(rng, text.encode())
    elif how == 6:
        text = text[:-1] + "," + text[1:]  # every key twice
    return text.encode()


def scratched(rng: Random, content: bytes) -> bytes:
    """Some bytes changed, inserted or missing; cut off, swapped or repeated pieces."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        a, b = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
        how = rng.randrange(6)
        if how == 0:
            del data[a:]
        elif how == 1:
            data[a:a] = data[a : min(b, a + 4096)]
        elif how == 2:
            data = data[a:b] + data[:a] + data[b:]
        else:
            data[a : a + rng.randint(0, 4)] = rng.choice(
                (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", bytes([rng.randrange(256)]))
            )
    return bytes(data)


def spoiled(rng: Random, root: Path, place: Path) -> None:
    """One file of a folder is cut, missing, a link, a pipe, a folder, far too large, or another one's."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path, how = rng.choice(files), rng.randrange(8)
    content, other = path.read_bytes(), rng.choice(files).read_bytes()
    if how == 0:
        path.write_bytes(scratched(rng, content))
        return
    if how == 1:
        os.truncate(path, rng.choice((0, 1, 2**30, 2**40)))  # a hole takes no room
        return
    path.unlink()
    if how == 2:
        os.symlink(rng.choice(("/dev/zero", "/etc/passwd", path.name, "..", str(place / "victim"))), path)
    elif how == 3:
        os.mkfifo(path)
    elif how == 4:
        path.mkdir()
    elif how == 5:
        path.write_bytes(other)
    elif how == 6 and path.parent != root:
        shutil.rmtree(path.parent)
        os.symlink(rng.choice((str(place), "/etc", "..")), path.parent)
