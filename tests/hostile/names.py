"""Names: features as they are written on the command line, and whatever a file may call itself on a page."""

from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import jaxcircuits as jc
from jaxcircuits.circuit import feature_label
from jaxcircuits.diagram.page import summary
from jaxcircuits.loading import describe_architecture
from jaxcircuits.pages import render, table
from jaxcircuits.spelling import parse
from tests.hostile.arrays import npy_of
from tests.hostile.circuits import MANIFEST
from tests.hostile.mutations import STRINGS
from tests.hostile.survival import Attempt


@cache
def layers():
    return describe_architecture("alexnet")[0].layers


def feature(rng: Random, place: Path) -> Attempt:
    pieces = (
        *STRINGS,
        "features.3",
        "features.10",
        "classifier.6",
        ":",
        ":",
        "@",
        "9",
        "0",
        "-",
        "*",
        "*",
        "999",
        "1-3",
        "3-1",
        "1,1",
        "7,99",
        "x.npy",
        "٣",
        " ",
    )
    text = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 6)))
    if rng.random() < 0.5:
        text = (
            f"features.{rng.choice((0, 3, 6, 8, 10))}:{rng.choice(pieces)}{rng.choice(('', '@'))}{rng.choice(pieces)}"
        )
    if rng.random() < 0.3:
        rows = (
            np.random.default_rng(0)
            .standard_normal(rng.choice(((64,), (2, 64), (2, 5), (1, 1, 64))))
            .astype(rng.choice((np.float32, np.float64, np.int16)))
        )
        path = place / "in" / "a.npy"
        path.write_bytes(npy_of(rng, rows))
        text = f"features.0:{path}" + rng.choice(("", "@middle", "@1,2", "@"))
    return lambda: parse(text, layers()).labels


def page(rng: Random, place: Path) -> Attempt:
    """Names, as they may come out of files, on a page: the same elements as with plain ones."""
    words = "".join(rng.choice((*STRINGS, "a")) for _ in range(rng.randint(1, 3)))
    manifest = MANIFEST | {"feature": {"layer": words, "name": words, "position": None}, "model": words, words: [words]}

    def made(manifest: dict[str, Any]) -> str:
        found = jc.Circuit({}, manifest)
        label, lines = feature_label(manifest), table(manifest)
        entry = {"label": label, "summary": summary(found), "manifest": lines[:20], "layers": [[label, 1, 2, 3, 4]]}
        entry |= {"total": [1, 2, 3, 4], "numbers": manifest, "r": 0.5, "curve": None, "drivers": [(label, "data:,")]}
        entry["diagram"] = {"label": label, "all": manifest}
        rooms = {"package": "jaxcircuits.report", "rooms": ("jaxcircuits.diagram",)}
        return render("report.html", title=label, entries=[entry, entry], data=[entry["diagram"]] * 2, **rooms)

    def attempt():
        tame = MANIFEST | {"feature": {"layer": "a", "name": "b", "position": None}, "model": "m", "w": ["w"]}
        html = made(manifest)
        html.encode()
        assert elements(html) == elements(made(tame))

    return attempt


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, tuple(name for name, _ in attrs)))

    def handle_comment(self, data):
        self.found.append(("comment", ()))


def elements(html: str) -> list[tuple[str, tuple[str, ...]]]:
    parser = Elements()
    parser.feed(html)
    return parser.found
