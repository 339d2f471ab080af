"""Hostile and broken files: each is read, or refused in one sentence; nothing else happens.

By default some hundreds; `pytest -m full tests/test_hostile.py -n 0 -s` has 10,000 and prints how many were refused.
"""

import json
import os
import re
import resource
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import jaxcircuits as jc
from jaxcircuits.atlas import store
from jaxcircuits.atlas.lock import held
from jaxcircuits.atlas.store import Plan
from jaxcircuits.cli.screen import Screen
from jaxcircuits.files import write_whole
from tests.hostile import CASES
from tests.hostile.arrays import safetensors_of
from tests.hostile.atlases import seed_atlas
from tests.hostile.circuits import MANIFEST, seed_arrays
from tests.hostile.names import elements
from tests.hostile.pickles import Evil
from tests.hostile.pictures import many_scans, seed_image
from tests.hostile.survival import Refused, command, prepared, survives
from weights_conversion import ConversionError, read_file, save_checkpoint, write_state

# orbax leaves arrays behind that it was still reading when another one turned out to be broken
pytestmark = pytest.mark.filterwarnings("ignore:(?s).*Event loop is closed:pytest.PytestUnraisableExceptionWarning")

FEW = {"circuit": 80, "atlas": 40, "state_dict": 60, "state_file": 50, "kernels": 40, "checkpoint": 6, "image": 60,
       "array": 60, "feature": 60, "page": 20}  # fmt: skip
MANY = {"circuit": 1900, "atlas": 1200, "state_dict": 1600, "state_file": 1200, "kernels": 600, "checkpoint": 200,
        "image": 1200, "array": 1000, "feature": 800, "page": 300}  # fmt: skip
GROWTH = 1500  # megabytes by which the process may become larger in one campaign


def campaign(kind, number, place):
    """So many files of one kind; how many of them were refused."""
    refused = []

    @seed(8)
    @given(st.randoms(use_true_random=True))
    @settings(max_examples=number, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    def one(rng):
        refused.append(survives(CASES[kind], rng, place) is not None)

    one()
    return sum(refused), len(refused)


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # back at the end, wherever a case has gone
    (tmp_path / "all").mkdir()
    return tmp_path / "all" / "one"


@pytest.mark.parametrize("kind", CASES)
def test_hostile_files(kind, place):
    refused, number = campaign(kind, FEW[kind], place)
    assert number >= FEW[kind] and (refused or kind == "page")


@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", CASES)
def test_ten_thousand_hostile_files(kind, place):
    before, begun = memory(), time.process_time()
    refused, number = campaign(kind, MANY[kind], place)
    print(f"\n{kind}: {number} files, {refused} refused, {time.process_time() - begun:.0f} s of CPU, "
          f"{memory() - before:.0f} MB more at the most")  # fmt: skip
    assert number >= MANY[kind] and memory() - before < GROWTH and os.getcwd()


# ---- the command line, in processes of their own

COMMANDS = {
    "circuit": lambda place: ["evaluate", str(place / "in" / "a.safetensors")],
    "atlas": lambda place: ["query", str(place / "in" / "atlas"), "circuit", "features.0:3", "--keep", "0.5",
                            "--out", str(place / "out")],
    "state_dict": lambda place: ["convert", "alexnet", "--weights", str(next((place / "in").iterdir())),
                                 "--out", str(place / "out" / "x.orbax")],
    "kernels": lambda place: ["import", str(next((place / "in").iterdir())), "alexnet", "features.3:1",
                              "--kernels", "9", "--out", str(place / "out")],
    "checkpoint": lambda place: ["convert", "alexnet", "--weights", str(place / "in" / "c"),
                                 "--out", str(place / "out" / "x.pth")],
    "image": lambda place: ["pictures", "alexnet", "features.0:1", "--steps", "0", "--strict", "--images",
                            str(place / "in" / "pictures"), "--out", str(place / "out")],
    "array": lambda place: ["pictures", "alexnet", "features.0:1", "--steps", "0", "--images",
                            str(next((place / "in").iterdir())), "--out", str(place / "out")],
}  # fmt: skip
ADDRESSES = 12 * 2**20  # kilobytes; XLA reserves some of them and uses few


def in_a_process(arguments, place, seconds=120):
    """One command under limits of memory and time; its exit code and the last line that it has said."""
    limited = ["sh", "-c", f'ulimit -v {ADDRESSES} && ulimit -t {seconds} && exec "$@"', "sh"]  # JAX forbids to fork
    done = subprocess.run(
        [*limited, sys.executable, "-m", "jaxcircuits", *arguments],
        cwd=place / "cwd", capture_output=True, text=True, errors="replace", timeout=20 * seconds,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr, done.stderr[-2000:]
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    assert done.returncode == 0 or last.startswith("Error: "), done.stderr[-2000:]
    assert not os.listdir(place / "cwd") and (place / "victim").read_text() == "untouched"
    assert set(os.listdir(place)) == {"in", "out", "cwd", "victim"}
    return done.returncode, last


@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", COMMANDS)
def test_the_command_line_on_hostile_files(kind, place):
    codes = []
    for number in range(10):
        CASES[kind](Random(f"{kind} {number}"), prepared(place))
        codes.append(in_a_process(COMMANDS[kind](place), place)[0])
    print(f"\n{kind}: {codes.count(2)} of {len(codes)} refused")
    assert 2 in codes


def test_the_command_line_runs_no_code_and_stays_in_its_folder(place):
    prepared(place)
    torch.save({"a": Evil()}, place / "in" / "a.pth")
    code, said = in_a_process(["convert", "alexnet", "--weights", str(place / "in" / "a.pth")], place)
    assert code == 2 and "is broken, or no PyTorch file of weights only" in said
    plan, chunks = seed_atlas()
    told = Plan(plan.manifest | {"model": "../../../planted"}, plan.groups)
    (place / "in" / store.MANIFEST).write_text(json.dumps(told.manifest))
    for which, chunk in chunks.items():
        store.write_chunk(told, place / "in", which, chunk)
    where = ["--keep", "0.5", "--out", str(place / "out")]
    assert in_a_process(["query", str(place / "in"), "circuit", "features.0:3", *where], place)[0] == 0
    assert os.listdir(place / "out") == [".._.._.._planted"]


# ---- one by one


def altered(root, **changes):
    """An atlas whose manifest says something else, with checksums that are right."""
    plan, chunks = seed_atlas()
    told = Plan(plan.manifest | changes, plan.groups)
    root.mkdir(parents=True, exist_ok=True)
    (root / store.MANIFEST).write_text(json.dumps(told.manifest))
    for which, chunk in chunks.items():
        store.write_chunk(told, root, which, chunk)
    return root


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
        for ending in ("part", "tmp"):
            link = tmp_path / f".a.pth.{os.getpid()}.{ending}"
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


@pytest.mark.parametrize(
    "key, value", [("input_size", 10**9), ("mean", [0, 0]), ("std", [1, 0, 1]), ("resize_size", "x")]
)
def test_checkpoints_that_ask_for_the_moon(key, value, tmp_path):
    tree = {"params": {"a": {"bias": np.zeros(2, np.float32)}}}
    save_checkpoint(tmp_path / "c", tree, {}, {"model": "alexnet", key: value})
    with pytest.raises(jc.InputError, match=f"has {key} {re.escape(repr(value))} in its manifest"):
        jc.load("alexnet", weights=tmp_path / "c")


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    for name in ("a.pth", "a.safetensors", "a.npy", "a.png", "manifest.json", "atlas.json"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "zeros.npy").symlink_to("/dev/zero")
    for path in (tmp_path / "a.pth", tmp_path / "a.safetensors"):
        with pytest.raises(ConversionError, match="no regular file"):
            read_file(path)
    for name in ("a.npy", "a.png", "zeros.npy"):
        with pytest.raises(jc.InputError, match="no regular file"):
            jc.read_images(tmp_path / name)
    for read in (jc.Atlas, lambda folder: jc.Circuit.load(folder / "a.safetensors")):
        with pytest.raises(jc.InputError, match="no regular file"):
            read(tmp_path)


@pytest.mark.parametrize("weights", ["random:" + "9" * 5000, "~\0", "a\0.pth"])
def test_sources_that_a_manifest_may_name(weights, tmp_path):
    with pytest.raises(jc.InputError, match="weights are"):
        jc.load("alexnet", weights=weights)
    with pytest.raises(jc.InputError, match="no name of a data set"):
        jc.read_images("tfds:mnist/data_dir=..")


def test_pictures_that_take_for_ever(tmp_path):
    (tmp_path / "a.jpg").write_bytes(many_scans(seed_image("jpg"), 700))
    with pytest.raises(jc.InputError, match="more than 100 scans"):
        jc.read_images(tmp_path / "a.jpg")


def test_numbers_that_are_not_there(tmp_path):
    torch.save({"a.weight": torch.zeros(1).expand(2**30, 2**30)}, tmp_path / "a.pth")
    with pytest.raises(ConversionError, match="claims to hold far more numbers than a file of"):
        read_file(tmp_path / "a.pth")
    manifest = {"jaxcircuits": json.dumps(MANIFEST)}
    content = safetensors_of(Random(1), seed_arrays("plain"), manifest)
    (tmp_path / "a").write_bytes(content.replace(b"[64, 3]", b"[64,99]"))
    with pytest.raises(jc.InputError, match="is no circuit file"):
        jc.Circuit.load(tmp_path / "a")


@pytest.mark.parametrize("zipped", [True, False])
def test_honest_checkpoints_are_read(zipped, tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam([{"params": [p]} for p in module.parameters()])  # each with the same tuple of betas
    module(torch.ones(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    content = {"state_dict": module.half().state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read_file(tmp_path / "a.pth")
    assert list(found) == list(module.state_dict()) and found["0.weight"].dtype == np.float32


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
