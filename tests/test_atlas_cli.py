"""`jaxcircuits atlas` and `jaxcircuits query`: what they print, and one sentence for whatever is wrong."""

import json
import os
import shutil

import numpy as np
import pandas
import pytest
from click.testing import CliRunner
from PIL import Image

import jaxcircuits as jc
from jaxcircuits.cli import main

ASKED = ("atlas", "alexnet", "features.0:0-3", "--images", "two.npy", "--chunk", "2", "--keep", ".5,.1", "--out", "out")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return os.environ.get("XDG_CACHE_HOME") or str(tmp_path_factory.mktemp("cache"))


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory, cache, networks_once):
    folder = tmp_path_factory.mktemp("made")
    np.save(folder / "two.npy", np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        networks_once(patch)
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", cache)
        dry = run(*ASKED, "--dry-run")
        assert not (folder / "out").exists()
        done = run(*ASKED)
    return folder, dry, done


@pytest.fixture
def workplace(made, cache, networks_once, tmp_path, monkeypatch):
    networks_once(monkeypatch)
    shutil.copytree(made[0], tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    return tmp_path / "work"


def test_what_is_printed(made):
    _, dry, done = made
    assert "alexnet with weights lpips (the default), 2 images: two.npy" in dry.stdout
    assert "features.0   4               2" in dry.stdout and "out: about" in dry.stdout
    assert "4 features in 2 chunks" in done.stdout and "8 circuits in out, 0.0 MB" in done.stdout
    first, second = done.stderr.splitlines()
    assert first.startswith("2 of 4 features, ") and second.startswith("4 of 4 features, ")
    assert " a second, 2 images each, " in first and second.endswith(" 0 s left")


def test_goes_on_and_tells_in_json(workplace):
    (workplace / "out" / "features.0" / "00001.json").unlink()
    dry = json.loads(run(*ASKED, "--dry-run", "--json").stdout)
    assert dry["event"] == "dry-run" and dry["layers"][0]["features"] == 2 and dry["seconds"] > 0
    begun, chunk, done = map(json.loads, run(*ASKED, "--json").stdout.splitlines())
    assert begun == {
        "event": "begun", "directory": "out", "features": 4, "there": 2, "chunks": 2, "left": 1, "images": 2
    }  # fmt: skip
    assert chunk["event"] == "chunk" and chunk["done"] == 2 and chunk["seconds_left"] == 0
    assert chunk["file"] == "out/features.0/00001.safetensors" and chunk["features_per_second"] > 0
    assert done["event"] == "done" and done["bytes"] > chunk["bytes"]
    assert [json.loads(line)["event"] for line in run(*ASKED, "--json").stdout.splitlines()] == ["begun", "done"]


def test_predicted_size(workplace):
    from jaxcircuits.atlas import store
    from jaxcircuits.atlas.predicting import bytes_of

    plan = store.read(workplace / "out")
    masks = sum(
        bits.nbytes for which in plan for bits in store.read_chunk(plan, workplace / "out", which).masks.values()
    )
    assert bytes_of(plan, plan.groups[0], 4) == masks == 4 * 2 * 64 * 3 // 8


@pytest.mark.filterwarnings("always:.*is made again")
def test_verify(workplace):
    assert "out: whole, 2 chunks and 1 tables" in run("atlas", "--verify", "out").stdout
    path = workplace / "out" / "features.0" / "00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    found = run("atlas", "--verify", "out", code=1).stdout
    assert "00001.safetensors: corrupt (its size is not that of its record); 2 features, features.0:2 and on" in found
    events = [json.loads(line) for line in run("atlas", "--verify", "out", "--json", code=1).stdout.splitlines()]
    assert events[0]["features"] == ["features.0:2", "features.0:3"] and events[-1]["whole"] is False
    mended = run(*ASKED)
    assert "00001.safetensors' is corrupt" in mended.stderr and run("atlas", "--verify", "out").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("atlas",), "there is no model; expected MODEL [LAYER...], or --verify DIR"),
        (("atlas", "alexnet", "--verify", "out"), "--verify takes a directory and no model"),
        (("atlas", "--verify", "two.npy"), "cannot be read"),
        (("atlas", "--verify", "nowhere"), "there is no atlas in 'nowhere'"),
        (("atlas", "alexnet", "features.1", "--images", "two.npy"), "there is no layer 'features.1'"),
        ((*ASKED, "--criterion", "actgrad"), "made otherwise (not the same: criterion)"),
        ((*ASKED[:2], "features.0:0-4", *ASKED[3:]), "made otherwise (not the same: features)"),
        ((*ASKED, "--dask", "127.0.0.1:1", "--distributed", "auto"), "either --dask or --distributed"),
        ((*ASKED, "--distributed", "here"), "expected HOST:PORT,PROCESSES,ID or auto"),
        (("query", "nowhere"), "there is no atlas in 'nowhere'"),
        (("query", "out", "nearest", "features.0:9", "--keep", ".5"), "the atlas has no feature 'features.0:9'"),
        (("query", "out", "nearest", "features.0:1", "--keep", ".2"), "has not keep=0.2; expected keep of 0.5 or 0.1"),
        (("query", "out", "nearest", "features.0:1"), "has not one level alone; expected keep of 0.5 or 0.1"),
        (("query", "out", "shared", "features.0", "--keep", ".5", "--kernels", "3"), "has not keep=0.5 and kernels=3"),
        (("query", "out", "matrix", "--keep", ".5", "--csv", "m.csv", "--plot", "m.jpg"), "ends in .png"),
        (("query", "out", "statistics", "--plot", "m.jpg"), "ends in .png"),
        (("atlas", "alexnet", "features.0:0", "--images", "two.npy", "--out", "new", "--batch", "9" * 20), "--batch"),
        (
            ("atlas", "alexnet", "features.0:0", "--images", "two.npy", "--out", "new", "--steps", "3"),
            "snip takes none",
        ),
        (("atlas", "alexnet", "features.0:0", "--images", "two.npy", "--out", ""), "it is empty"),
        (("query", "out", "users", "features.0", "--keep", ".5"), "expected LAYER:OUTPUT,INPUT"),
        (("query", "out", "shared", "features.0", "--keep", ".5", "--plot", "a.txt"), "ends in .png"),
    ],
)
def test_bad_input_is_one_sentence(workplace, arguments, sentence):
    before = sorted(workplace.rglob("*"))
    result = run(*arguments, code=2)
    assert sentence in result.stderr.splitlines()[-1] and not result.stdout
    assert sorted(workplace.rglob("*")) == before


def test_answers_of_a_part_say_so(workplace):
    (workplace / "out" / "features.0" / "00001.safetensors").unlink()
    for record in (workplace / "out" / "features.0").glob("00001.*"):
        record.unlink()
    found = run("query", "out", "users", "features.0:1", "--keep", ".5")
    assert found.stderr == "Warning: 1 of 2 chunks are there; answers are of these\n" and "features.0:1" in found.stdout
    assert not run("query", "out", "users", "features.0:2", "--keep", ".5", "--json").stdout.count("features.0:2")


def test_a_matrix_of_nothing(workplace):
    for path in (workplace / "out" / "features.0").glob("0000*"):
        path.unlink()
    wrong = run("query", "out", "matrix", "features.0", "--keep", ".5", "--plot", "m.png", "--csv", "m.csv", code=2)
    assert "has no chunk of that yet" in wrong.stderr
    assert not (workplace / "m.png").exists() and not (workplace / "m.csv").exists()


def test_no_cluster_leaves_nothing(workplace):
    before = sorted(workplace.rglob("*"))
    result = run("atlas", "alexnet", "features.0:0", "--images", "two.npy", "--out", "new", "--dask", "x:y", code=2)
    assert "no Dask scheduler at 'x:y'" in result.stderr and sorted(workplace.rglob("*")) == before


def test_questions(workplace):
    atlas = jc.Atlas("out")
    assert "features.0    0.5          4" in run("query", "out").stdout
    assert "plot in r.png" in run("query", "out", "statistics", "--plot", "r.png").stdout
    rows = json.loads(run("query", "out", "table", "--json").stdout)["rows"]
    pandas.testing.assert_frame_equal(pandas.DataFrame(rows), atlas.table(), check_dtype=False)
    path = json.loads(run("query", "out", "circuit", "features.0:2", "--keep", ".5", "--json").stdout)["circuit"]
    found, expected = jc.Circuit.load(path), atlas.circuit("features.0:2", keep=0.5)
    assert (found.masks["features.0"] == expected.masks["features.0"]).all() and found.masks["features.0"].sum() == 2
    output, kept = int(np.flatnonzero(found.masks["features.0"].any(0))[0]), found.masks["features.0"][:, 2]
    assert output == 2
    users = run("query", "out", "users", f"features.0:2,{int(kept.argmax())}", "--keep", ".5").stdout
    assert "features.0:2" in users and "features.0:1" not in users
    shared = run("query", "out", "shared", "features.0", "--keep", ".5", "--never", "--plot", "s.png").stdout
    assert "184 of 192 kernels are used by none, plot in s.png" in shared
    assert run("query", "out", "iou", "features.0:1", "features.0:1", "--keep", ".1").stdout == "1.0000\n"
    run("query", "out", "matrix", "features.0", "--keep", ".5", "--csv", "m.csv", "--plot", "m.png")
    matrix = pandas.read_csv("m.csv", index_col=0)
    np.testing.assert_array_equal(matrix, np.eye(4))
    near = json.loads(run("query", "out", "nearest", "features.0:1", "--keep", ".5", "--json").stdout)["rows"]
    assert len(near) == 3 and near[0]["iou"] == 0
    clusters = run("query", "out", "clusters", "--keep", ".5").stdout
    assert "features.0:3" in clusters and clusters.count("alone") == 4  # no two of these circuits overlap
    for name in ("r.png", "s.png", "m.png"):
        with Image.open(name) as picture:
            assert picture.width > 600


def test_a_report_of_features_side_by_side(workplace):
    asked = ("report", "--atlas", "out", "--keep", ".5", "--pictures", "none", "--out", "pages")
    told = json.loads(run(*asked, "features.0:1", "features.0:3", "--json").stdout)
    assert told == {"files": ["pages/report.html"]}
    page = (workplace / "pages" / "report.html").read_text()
    assert "features.0:1" in page and "features.0:3" in page and "features.0:2" not in page
    run(*asked, "features.0:2", "--quiet")
    assert (workplace / "pages" / "features.0_2.snip.keep0.5.report.html").exists()
    wrong = run(*asked, "features.0:9", code=2)
    assert "the atlas has no feature 'features.0:9'" in wrong.stderr
    for level in (("--keep", ".5"), ("--kernels", "3")):
        assert "expected --atlas" in run("report", "a.safetensors", *level, code=2).stderr
    wrong = run("report", "--atlas", "out", "--kernels", "3", "features.0:1", code=2)
    assert "the atlas has not kernels=3; expected keep of" in wrong.stderr
