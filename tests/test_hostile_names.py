"""Names from files, on the terminal and in drawings."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import jaxcircuits as jc
from jaxcircuits.cli.screen import Screen
from tests.hostile.circuits import MANIFEST
from tests.hostile.names import elements
from tests.hostile.survival import Refused, command


def test_what_is_printed_moves_no_cursor(tmp_path, capsys):
    Screen(False, False).say("a\x1b[2J\nb\r\u202e")
    assert capsys.readouterr().out == "a\\x1b[2J\nb\\r\\u202e\n"
    with pytest.raises(Refused, match=r"no model '\\x1b\[2J"):
        command("info", "\x1b[2J")
    error = jc.InputError("x" * 10_000 + "\n\0")
    assert len(str(error)) < 2100 and str(error).isprintable()


def test_drawings_of_hostile_names(small):
    tree, marks = {}, {}
    for words in ("plain", "</text></svg><script>alert(1)</script>&<![CDATA[\0\x1b\ud800\u202e$\\frac{$]]>-->"):
        feature = {"layer": "features.3", "name": words, "position": None}
        masks = {name: np.ones((layer.inputs, layer.outputs), bool) for name, layer in small.model.layers.items()
                 if name in ("features.0", "features.3")}  # fmt: skip
        manifest = MANIFEST | {"feature": feature, "model": words, "criterion": words, words: {words: [words]}}
        drawing = jc.diagram(
            small.model, jc.Circuit(masks, manifest, direction=np.ones(6, np.float32)), pictures="none"
        )
        for kind in ("svg", "graphml"):
            found = [(e.tag, sorted(e.keys())) for e in ElementTree.fromstring(drawing.to(kind)).iter()]
            assert tree.setdefault(kind, found) == found
        found = elements(drawing.to("html").decode())
        assert marks.setdefault("html", found) == found
        assert json.loads(drawing.to("json"))["graph"]["manifest"]["model"] == words
        for kind in ("png", "pdf"):
            assert drawing.to(kind)
