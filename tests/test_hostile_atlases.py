"""Atlases that are hostile or broken, one by one: what their manifest says, links, and chunks that hold too much."""

import hashlib
import json
import os

import numpy as np
import pytest

import jaxcircuits as jc
from jaxcircuits.atlas import store
from jaxcircuits.atlas.lock import held
from jaxcircuits.atlas.store import Plan
from jaxcircuits.files import write_all, write_whole
from tests.hostile.atlases import altered, seed_atlas
from weights_conversion import write_state


def groups(**changes):
    return [group | changes for group in seed_atlas()[0].manifest["groups"][:1]]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"groups": groups(folder="../../planted")}, "no name of a folder"),
        ({"groups": groups(folder="/etc")}, "no name of a folder"),
        ({"groups": groups(folder="..")}, "no name of a folder"),
        ({"groups": groups(shapes={"features.0": [2**60, 2**60]})}, r"is not \(O, I\)"),
        ({"groups": groups(chunk=0)}, "not of one feature"),
        ({"groups": []}, "no groups"),
        ({"amounts": []}, "its amounts"),
        ({"amounts": [{"keep": 0.5}, {"kernels": 3}]}, "its amounts"),
        ({"criterion": "<script>"}, "its criterion is '<script>'"),
        ({"model": 7}, "model of the wrong type"),
    ],
)
def test_atlases_that_are_none(changes, why, tmp_path):
    plan = seed_atlas()[0]
    (tmp_path / store.MANIFEST).write_text(json.dumps(plan.manifest | changes))
    with pytest.raises(jc.InputError, match=f"is broken: .*{why}"):
        jc.Atlas(tmp_path)


def test_names_as_long_as_they_may_be(tmp_path):
    for path in (tmp_path / ("a" * 251 + ".png"), tmp_path / ("図" * 83 + ".png")):
        write_whole(path, b"x")
        assert path.read_bytes() == b"x"


def test_all_files_or_none(tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(jc.InputError, match="it is a folder"):
        write_all({tmp_path / "a": b"x", tmp_path / "b": b"y"})
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_links_in_atlases_are_not_followed(tmp_path):
    root, elsewhere = altered(tmp_path / "atlas"), tmp_path / "elsewhere"
    (root / "features.0").rename(elsewhere)
    (root / "features.0").symlink_to(elsewhere)
    with pytest.raises(jc.InputError, match=r"features\.0' is a link"):
        jc.Atlas(root)
    (tmp_path / "precious").write_text("kept")
    (root / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(jc.InputError, match="it is a link"), held(root):
        pass
    for write in (lambda path: write_whole(path, b"x"), lambda path: write_state(path, {"a": np.ones(2)})):
        known = hashlib.blake2s(b"a.pth", digest_size=8).hexdigest()
        for name in (f".{known}.{os.getpid()}.part", f".a.pth.{os.getpid()}.tmp"):
            link = tmp_path / name
            link.unlink(missing_ok=True)
            link.symlink_to(tmp_path / "precious")
        write(tmp_path / "a.pth")
    assert (tmp_path / "precious").read_text() == "kept"


@pytest.mark.parametrize("padding", [True, False])
def test_chunks_hold_what_they_should(padding, tmp_path):
    plan, chunks = seed_atlas()
    which, chunk = next(iter(chunks.items()))
    if padding:  # 8 x 3 kernels fill their bytes; with 5 x 3 one bit is left
        manifest = plan.manifest | {"groups": groups(shapes={"features.0": [5, 3]}), "scores": None}
        plan = Plan(manifest, (store._group(manifest["groups"][0]),))
        chunk = chunk._replace(masks={"features.0": chunk.masks["features.0"][:, :, :2] | 1}, more={})
    else:
        chunk = chunk._replace(kept=chunk.kept[:1])
    (tmp_path / store.MANIFEST).write_text(json.dumps(plan.manifest))
    store.write_chunk(plan, tmp_path, which, chunk)
    with pytest.raises(
        jc.InputError, match="has kernels that the layer has not" if padding else "is not int32 of shape"
    ):
        jc.Atlas(tmp_path).table()
