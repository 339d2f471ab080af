"""What all HTML pages share: one file that asks nothing of any network, escaped, light and dark, with pictures inside.

A page is a Jinja template in its room's folder `templates`, which extends `base.html`:

    {% extends "base.html" %}
    {% block bar %}<label>keep <input type="range" id="keep"></label>{% endblock %}
    {% block main %}<svg id="map"></svg>{% endblock %}

    text = render("map.html", package="jaxcircuits.pictures", title="features.10:9", styles=["map.css"],
                  scripts=["map.js"], data={"points": [...], "images": [data_uri(image), ...]})
    write_whole(Path("map.html"), text.encode())

`base.html` gives the head, a bar with the title and the button for light and dark, and blocks: `bar` (more controls),
`main` and `foot`. Styles and scripts are files beside the template or of this room, put into the page as they are;
style.css names the colours (`--ink`, `--paper`, `--accent`, `--more`, `--less` ...), page.js gives scripts
`page.data` (what was given as `data`) and the helpers that stand there. Only the scripts named here run: the page's
content security policy holds their digests, so that not even a name that escaping had missed could start one.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from jaxcircuits.packages import needed

ROOM = "jaxcircuits.pages"
MOST_LINES, MOST_LETTERS = 1000, 5000  # of a table
KINDS = {"png": {"optimize": True}, "jpeg": {"quality": 82}, "webp": {"quality": 78, "method": 4}}


def render(
    template: str,
    *,
    package: str,
    title: str,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    rooms: Sequence[str] = (),
    data: Any = None,
    **values: Any,
) -> str:
    """A self-contained HTML page.

    Args:
        template: a file in the folder `templates` of `package`.
        package: the dotted name of the room whose page it is.
        title: of the page; like all values it may hold anything, and is escaped.
        styles, scripts: files in `templates`, of that room or this, in the order in which they are to stand.
        rooms: other packages in whose `templates` they may be.
        data: whatever JSON can hold, for the scripts; without nan.
        values: what else the template names.

    Raises:
        InputError: Jinja is not installed.
    """
    places = (package, *rooms, ROOM)
    texts = [_text(places, name) for name in ("page.js", *scripts)]
    sources = " ".join(f"'sha256-{_digest(text)}'" for text in texts)
    given = {
        "title": title,
        "styles": [_text(places, name) for name in ("style.css", *styles)],
        "scripts": texts,
        "policy": f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {sources}",
        "data": inert(data),
    }
    page = _environment(package).get_template(template).render(**given, **values)
    return page.encode("utf-8", "backslashreplace").decode()  # halves of pairs stand for bytes in names of files


def data_uri(image: np.ndarray, *, kind: str = "webp") -> str:
    """An image (h, w, 3) uint8 as a `data:` address.

    Args:
        image: RGB, or (h, w) grey.
        kind: "webp" (small, for pages), "jpeg" or "png" (exact; other programs read it in an SVG).
    """
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image, np.uint8)).save(stream, format=kind, **KINDS[kind])
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def inert(data: Any) -> str:
    """JSON that can stand inside an HTML element: nothing in it ends one or begins one."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&'\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@functools.cache
def _environment(package: str):
    jinja = needed("jinja2", "a page")
    rooms = dict.fromkeys((package, ROOM))
    return jinja.Environment(
        loader=jinja.ChoiceLoader([jinja.PackageLoader(room) for room in rooms]),
        autoescape=True,
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@functools.cache
def _text(places: Sequence[str], name: str) -> str:
    """A style or script, from the first room that has it."""
    found = next(path for path in (files(room) / "templates" / name for room in places) if path.is_file())
    return found.read_text(encoding="utf-8").strip() + "\n"


def table(rows: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A nested mapping, such as a manifest, as lines of dotted names and values; the first of very many, and what is
    very long is cut."""
    lines = []
    for name, value in itertools.islice(rows.items(), MOST_LINES):
        name = name[:MOST_LETTERS]
        if isinstance(value, Mapping):
            lines += [(f"{name}.{inner}", text) for inner, text in table(value)]
        elif isinstance(value, list | tuple):
            lines.append((name, ", ".join(_cut(part) for part in value[:MOST_LETTERS])))
        else:
            lines.append((name, "" if value is None else str(value)))
    return [(name, _cut(text)) for name, text in lines[:MOST_LINES]]


def _cut(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]} ..."
