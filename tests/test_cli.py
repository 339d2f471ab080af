"""The command line with real files, some of it in real processes; bad input ends in one sentence and exit code 2."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open

import jaxcircuits as jc
from jaxcircuits.cli import main
from jaxcircuits.cli.networks import convert
from tests.manifests import MANIFEST
from tests.torchvision_oracle import torchvision
from weights_conversion import read_state

HERE = Path(__file__).parents[1]
needs_photos = pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="photos need scikit-image")


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """One cache of compiled programs for all commands."""
    return os.environ.get("XDG_CACHE_HOME") or str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def process(cache, pixels):
    """Run the command in a process of its own."""

    def run(folder, *arguments, module="jaxcircuits"):
        command = [sys.executable, "-m", module, *map(str, arguments)]
        options = {"cwd": folder, "env": environment(cache), "timeout": 240}
        done = subprocess.run(command, capture_output=True, text=True, **options)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        return done

    return run


@pytest.fixture
def here(cache, networks_once, monkeypatch):
    """Run the command in this process, which has long started."""
    networks_once(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", cache)

    def run(folder, *arguments, check=0):
        monkeypatch.chdir(folder)
        done = CliRunner().invoke(main, [str(a) for a in arguments])
        assert done.exit_code == check, (done.output, done.exception)
        assert done.exception is None if check == 0 else isinstance(done.exception, SystemExit)
        return done

    return run


def environment(cache):
    return {**os.environ, "XDG_CACHE_HOME": cache, "PYTHONPATH": str(HERE), "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="session")
def made(process, pixels, tmp_path_factory):
    """A folder with images and the circuits of one `extract`, and what that printed."""
    folder = tmp_path_factory.mktemp("made")
    np.save(folder / "two.npy", pixels)
    np.save(folder / "other.npy", pixels[::-1, ::-1])
    np.save(folder / "dirs.npy", np.random.default_rng(1).standard_normal((2, 192)).astype(np.float32))
    features = ("features.3:1", "features.3:5-6@middle", "features.3:dirs.npy@3,4")
    options = ("--images", "two.npy", "--keep", "0.5,.1", "--scores")
    done = process(folder, "extract", "alexnet", *features, *options)
    return folder, done, ("extract", "alexnet", *features, *options)


@pytest.fixture
def workplace(made, tmp_path):
    """A copy of that folder."""
    shutil.copytree(made[0], tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def fails(workplace, here, monkeypatch):
    """Run a command in this process; it must end in one sentence and leave nothing behind."""
    monkeypatch.chdir(workplace)

    def run(*arguments):
        before = listing(workplace)
        result = here(workplace, *arguments, check=2)
        assert not result.stdout and listing(workplace) == before
        last = result.stderr.splitlines()[-1]
        assert last.startswith("Error: ")
        return last

    return run


def listing(folder):
    return {path: path.stat().st_size for path in folder.rglob("*")}


@contextlib.contextmanager
def compiled():
    """The programs that are compiled meanwhile, or looked up in the cache."""
    found = []

    def listen(event, _, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(about)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def manifest_of(path):
    with safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()["jaxcircuits"])


def test_extract(made):
    folder, done, _ = made
    stems = ["1", "5@middle", "6@middle", "dirs-0@3,4", "dirs-1@3,4"]
    names = {f"features.3_{stem}.snip.keep{keep}.safetensors" for stem in stems for keep in ("0.5", "0.1")}
    plot = "features.3_1_and_4_more.snip.png"
    assert set(os.listdir(folder / "circuits" / "alexnet")) == names | {plot}
    assert "weights lpips (the default), 2 images: two.npy" in done.stdout
    rows = re.findall(r"^features.3:(\S+) +(0.5|0.1) +\d+ +\d+ +\d+ +(-?\d.\d{3}|constant)$", done.stdout, re.M)
    assert [row[:2] for row in rows] == [(stem.replace("_", ""), keep) for stem in stems for keep in ("0.5", "0.1")]
    assert done.stdout.endswith(f"\n10 circuits in circuits/alexnet, plot in circuits/alexnet/{plot}\n")
    assert not done.stderr
    with Image.open(folder / "circuits" / "alexnet" / plot) as image:
        colours = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
        assert image.format == "PNG" and image.width > 600 and len(colours) > 50


COUNTED = """
import atexit, collections, json, runpy, sys
import jax

seen = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: seen.update([event.rpartition("/")[2]]))
atexit.register(lambda: json.dump(seen, open("seen.json", "w")))
runpy.run_module("jaxcircuits", run_name="__main__")
"""


@pytest.mark.slow
def test_the_second_start_compiles_nothing(pixels, tmp_path):
    np.save(tmp_path / "two.npy", pixels)
    env = {k: v for k, v in environment(str(tmp_path / "cache")).items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", COUNTED, "extract", "alexnet", "features.0:1", "--images", "two.npy"]
    starts = []
    for _ in range(2):
        subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True, timeout=240)
        programs = {path.name for path in (tmp_path / "cache" / "jaxcircuits" / "xla").glob("*-cache")}
        circuits = {path: path.read_bytes() for path in (tmp_path / "circuits").rglob("*.safetensors")}
        starts.append((json.loads((tmp_path / "seen.json").read_text()), programs, circuits))
    (first, *made), (second, *found) = starts
    assert first["cache_misses"] == len(made[0]) > 10 and found == made
    assert second["cache_hits"] == second["compile_requests_use_cache"] and "cache_misses" not in second


def test_circuit_files(made):
    folder = made[0] / "circuits" / "alexnet"
    path = folder / "features.3_dirs-1@3,4.snip.keep0.5.safetensors"
    manifest = manifest_of(path)
    pictures = jc.read_images(made[0] / "two.npy")
    expected = {
        "model": "alexnet",
        "weights": {"source": "lpips", "sha256": jc.load("alexnet").sha256},
        "images": {"source": "two.npy", "resize": None, "number": 2, "digest": pictures.digest},
        "criterion": "snip",
        "absolute": "per_image",
        "objective": "abs",
        "keep": 0.5,
        "kernels": None,
        "dtype": "float32",
        "seed": None,
    }
    assert expected.items() <= manifest.items()
    assert manifest["feature"]["name"] == "dirs-1" and manifest["feature"]["position"] == [3, 4]
    assert manifest["relevant"] == 192 + 192 * 64 and manifest["kept"] == manifest["relevant"] // 2
    assert {"jaxcircuits", "jax", "flax", "numpy"} == set(manifest["versions"])
    with safe_open(path, framework="numpy") as file:
        shapes = {name: (file.get_tensor(name).dtype, file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118
    layers = {"features.0": (64, 3), "features.3": (192, 64)}
    assert shapes == {
        **{f"mask/{name}": (np.dtype(bool), shape) for name, shape in layers.items()},
        **{f"score/{name}": (np.dtype(np.float32), shape) for name, shape in layers.items()},
        "direction": (np.dtype(np.float32), (192,)),
    }


def test_the_same_again_and_something_else(made, here, workplace):
    before = {path: path.read_bytes() for path in (workplace / "circuits").rglob("*.*")}
    here(workplace, *made[2], "--quiet")
    assert {path: path.read_bytes() for path in (workplace / "circuits").rglob("*.*")} == before
    other = (*made[2][:3], "--images", "other.npy", "--keep", "0.5")
    done = here(workplace, *other, check=2)
    assert re.search(r"not the same: images\); --force .*overwrites it\n$", done.stderr) and not done.stdout
    assert {path: path.read_bytes() for path in (workplace / "circuits").rglob("*.*")} == before
    done = here(workplace, *other, "--force", "--json")
    document = json.loads(done.stdout)
    (row,) = document["circuits"]
    assert row["circuit"] == "circuits/alexnet/features.3_1.snip.keep0.5.safetensors" and "plot" not in document
    assert manifest_of(workplace / row["circuit"])["images"] == row["images"]
    assert row["images"]["source"] == "other.npy" and not done.stderr


def test_many_features_quiet_and_kernels(here, workplace):
    options = (
        "--images",
        "two.npy",
        "--criterion",
        "random",
        "--kernels",
        "40,100",
        "--out",
        "many",
        "--plot",
        "a.png",
    )
    done = here(workplace, "extract", "alexnet", "features.3:1", "features.3:0-29", *options)
    assert re.search(r"^feature +r at kernels 40 +r at kernels 100$", done.stdout, re.M)
    lines = re.findall(
        r"^(features.3:\d+|mean) +(?:-?\d\.\d{3}|constant) +(?:-?\d\.\d{3}|constant)$", done.stdout, re.M
    )
    assert len(lines) == 32 and lines[-1] == "mean" and lines.count("features.3:1") == 2
    assert len(list((workplace / "many").rglob("*.safetensors"))) == 60 and (workplace / "a.png").stat().st_size > 1e4
    done = here(workplace, "extract", "alexnet", "features.3:1", *options[:-2], "--quiet")
    assert not done.stdout and not done.stderr


def test_evaluate(made, here):
    folder = made[0]
    paths = [f"circuits/alexnet/features.3_{at}.snip.keep0.5.safetensors" for at in ("1", "dirs-0@3,4")]
    rows = json.loads(here(folder, "evaluate", *paths, "--json").stdout)["circuits"]
    assert [row["circuit"] for row in rows] == paths and [row["images"] for row in rows] == ["two.npy"] * 2
    for row in rows:
        assert row["correlation"] == pytest.approx(row["recorded"], abs=1e-5)
    done = here(folder, "evaluate", *paths, "--images", "other.npy")
    assert all(re.search(rf"^{re.escape(path)} +other.npy +2 +-?\d", done.stdout, re.M) for path in paths)
    done = here(folder, "evaluate", *paths, "--nulls", "3", "--json")
    for row in json.loads(done.stdout)["circuits"]:
        assert row["p"] in (0.25, 0.5, 0.75, 1) and abs(row["mean_of_nulls"]) <= 1
    asked = ("extract", "alexnet", "features.3:1", "--images", "two.npy", "--out", "wide", "--granularity", "filter")
    here(folder, *asked, "--keep", ".5")
    (path,) = map(str, (folder / "wide").rglob("*.safetensors"))
    (row,) = json.loads(here(folder, "evaluate", path, "--nulls", "3", "--json").stdout)["circuits"]
    circuit, model, two = jc.Circuit.load(path), jc.load("alexnet"), jc.read_images(folder / "two.npy")
    filters = jc.masks_at({name: mask[None] for name, mask in circuit.masks.items()}, "filter")
    possible = jc.relevant_kernels(model, circuit.features)
    found = jc.against_nulls(model, two, circuit.features, filters, possible, number=3, by_layer=True)
    assert row["correlation"] == pytest.approx(row["recorded"], abs=1e-5)
    assert row["mean_of_nulls"] == pytest.approx(np.nan_to_num(found.nulls).mean(), abs=1e-5), "random filters"
    other = here(folder, "evaluate", *paths, "--images", "other.npy", "--weights", "random", "--json")
    assert json.loads(other.stdout)["circuits"][0]["correlation"] != rows[0]["correlation"]


def test_images_that_are_larger_than_nominal(workplace, here):
    """Positions are theirs, for whatever takes the circuit."""
    large = np.random.default_rng(0).integers(0, 256, (1, 256, 240, 3), dtype=np.uint8)
    np.save(workplace / "large.npy", large)
    asked = ("extract", "alexnet", "features.0:5@60,57", "--images", "large.npy", "--keep", ".5", "--out", "large")
    here(workplace, *asked)
    path = "large/alexnet/features.0_5@60,57.snip.keep0.5.safetensors"
    for more in (("evaluate",), ("diagram", "--pictures", "none"), ("report", "--pictures", "none"), ("export",)):
        here(workplace, more[0], path, *more[1:], *(() if more[0] == "evaluate" else ("--out", "large")))
    assert jc.compact(jc.load("alexnet"), jc.Circuit.load(workplace / path))


def test_pictures_of_what_does_not_move(workplace, here):
    circuit = jc.Circuit.load(workplace / "circuits/alexnet/features.3_1.snip.keep0.5.safetensors")
    for mask in circuit.masks.values():
        mask[:] = False
    circuit.save(workplace / "empty.safetensors")
    asked = ("pictures", "alexnet", "features.3:1", "--circuit", "empty.safetensors", "--count", "0", "--steps", "1")
    done = here(workplace, *asked)
    assert "no picture of features.3:1: gradient ascent found no gradient" in done.stdout
    assert "0 pictures in" in done.stdout


def test_pictures_in_a_circuit_are_of_its_network_and_images(workplace, here, fails):
    here(workplace, X, "alexnet", "features.0:5", "--images", "two.npy", "--weights", "random:3", "--keep", ".5")
    path = "circuits/alexnet/features.0_5.snip.keep0.5.safetensors"
    asked = ("pictures", "alexnet", "features.0:5", "--circuit", path, "--steps", "0", "--count", "1")
    (row,) = json.loads(here(workplace, *asked, "--json").stdout)["features"]
    model, circuit = jc.load("alexnet", weights="random:3"), jc.Circuit.load(path)
    images = jc.read_images("two.npy", model)
    found = jc.top_patches(model, images, circuit.features, count=1, masks=circuit.masks)
    np.testing.assert_allclose(row["top"], found.values[0], rtol=1e-5)
    other = json.loads(here(workplace, *asked, "--weights", "lpips", "--images", "other.npy", "--json").stdout)
    assert other["features"][0]["top"] != row["top"]
    assert "says itself whether its network" in fails(*asked, "--plain-input")


def test_evaluate_refuses_what_has_changed(fails, workplace, pixels, monkeypatch):
    path = "circuits/alexnet/features.3_1.snip.keep0.5.safetensors"
    np.save(workplace / "two.npy", pixels[:, ::-1])
    assert "the images 'two.npy' are no longer the circuit's; --images" in fails("evaluate", path)
    (workplace / "two.npy").unlink()
    assert "two.npy" in fails("evaluate", path)
    circuit = jc.Circuit.load(path)
    circuit.manifest["weights"]["sha256"] = "0"  # pyright: ignore
    circuit.save("changed.safetensors")
    for command in ("evaluate", "export"):
        assert "the weights 'lpips' are no longer the circuit's; --weights" in fails(command, "changed.safetensors")
    circuit.manifest["images"]["source"] = "array"  # pyright: ignore
    circuit.save("changed.safetensors", force=True)
    assert "an array in memory" in fails("evaluate", "changed.safetensors", "--weights", "lpips")


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_hostile_circuit_files(command, fails, workplace):
    path = "circuits/alexnet/features.3_1.snip.keep0.5.safetensors"
    good = jc.Circuit.load(path)
    (workplace / "empty").touch()
    (workplace / "short").write_bytes(Path(path).read_bytes()[:-9])
    (workplace / "huge").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    for name in ("empty", "short", "huge", "two.npy", "circuits", "none"):
        assert repr(name) in fails(command, name)
        assert repr(name) in fails(command, path, name)
    evil = {**good.masks, "../../evil": np.ones((2, 2), bool)}
    jc.Circuit(evil, good.manifest).save("evil")
    assert "no layer '../../evil'" in fails(command, "evil")
    jc.Circuit({"features.0": np.ones((9, 9), bool)}, good.manifest).save("shape")
    assert "features.0" in fails(command, "shape")
    jc.Circuit(good.masks, {**good.manifest, "model": "../alexnet"}).save("model")
    assert "no model '../alexnet'" in fails(command, "model")


def test_export_and_its_snippet(here, workplace):
    path = "circuits/alexnet/features.3_1.snip.keep0.5.safetensors"
    done = here(workplace, "export", path, "--out", "new/folder")
    stem = "new/folder/features.3_1.snip.keep0.5"
    files = [f"{stem}{ending}" for ending in (".masks.pt", ".masks.safetensors", ".weights.pth")]
    assert done.stdout.splitlines()[:3] == files
    assert sorted(os.listdir(workplace / "new" / "folder")) == sorted(map(os.path.basename, files))
    snippet = done.stdout.partition("in `model`:\n\n")[2]
    model = torchvision().models.alexnet(weights=None)
    with contextlib.chdir(workplace):
        exec(snippet.partition("# or")[0], {"model": model})
        masks = torch.load(files[0])
        state = torch.load(files[2])
    circuit = jc.Circuit.load(workplace / path)
    for name, mask in circuit.masks.items():
        np.testing.assert_array_equal(masks[f"{name}.weight_mask"][:, :, 0, 0].numpy(), mask.T)
        zero = (model.get_submodule(name).weight == 0).all((2, 3)).numpy()
        np.testing.assert_array_equal(zero, ~mask.T)
        np.testing.assert_array_equal((state[f"{name}.weight"] == 0).all((2, 3)).numpy(), ~mask.T)
    done = here(workplace, "export", path, "--out", "new/folder", check=2)
    assert done.stderr == f"Error: {files[0]!r} exists; --force (force=True) overwrites it\n"
    document = json.loads(here(workplace, "export", path, "--out", "new/folder", "--force", "--json").stdout)
    assert document == {"files": files}


def test_mean_ablation(workplace, here):
    """Extracted, judged on the same and other images, and exported, beside the circuit of zero ablation."""

    def run(*arguments):
        return here(workplace, *arguments).stdout

    run("extract", "alexnet", "features.3:1", "--images", "two.npy", "--keep", "0.5", "--ablation", "mean")
    zero, mean = (f"circuits/alexnet/features.3_1.snip.{how}keep0.5.safetensors" for how in ("", "mean."))
    document = json.loads(run("evaluate", zero, mean, "--json"))
    for row, ablation in zip(document["circuits"], ("zero", "mean"), strict=True):
        assert row["ablation"] == ablation == manifest_of(row["circuit"])["ablation"]
        assert row["correlation"] == pytest.approx(row["recorded"], abs=1e-5)
        low, high = row["interval"]
        assert low <= row["correlation"] <= high and row["top_image_overlap"] == 1
        assert row["faithfulness"] <= 1 and row["relative_squared_error"] >= 0
    a, b = document["circuits"]
    assert a["correlation"] != b["correlation"] and "means of removed kernels" not in run("export", zero)
    other = json.loads(run("evaluate", mean, "--images", "other.npy", "--json"))["circuits"][0]
    circuit = jc.Circuit.load(mean)
    masks, offsets = ({n: a[None] for n, a in arrays.items()} for arrays in (circuit.masks, circuit.offsets))
    judged = jc.load("alexnet"), jc.read_images("other.npy"), circuit.features, masks
    r = jc.correlation(*judged, ablation="mean", offsets=offsets)
    assert other["correlation"] == pytest.approx(float(r[0]), abs=1e-5), "by the means that the circuit was made with"
    assert "hold the means of removed kernels; masks alone set them to zero" in run("export", mean)
    state = torch.load("circuits/features.3_1.snip.mean.keep0.5.weights.pth")
    bias = np.asarray(jc.load("alexnet").variables["params"]["features.3"]["bias"])
    np.testing.assert_allclose(state["features.3.bias"].numpy(), bias + circuit.offsets["features.3"], atol=1e-6)


def test_convert_there_and_back(workplace, cache, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    run, name = CliRunner().invoke, "squeezenet1_1"
    steps = [("random:5", "a.orbax"), ("a.orbax", "new/b.PTH"), ("new/b.PTH", "c.safetensors")]
    states = []
    for source, out in steps:
        result = run(convert, [name, "--weights", source, "--out", out])
        assert result.exit_code == 0 and result.stdout == f"{name} with weights {source} is in {out}\n", result.output
        states.append(read_state(out, name))
    assert run(convert, ["alexnet", "--out", "a.orbax"]).stderr == "Error: 'a.orbax' exists; --force overwrites it\n"
    result = run(convert, ["alexnet", "--out", "a.orbax", "--force", "--json"])
    assert json.loads(result.stdout)["missing"][0].startswith("classifier."), result
    states.append(jc.load(name, weights="random:5").state_dict())
    for state in states[1:]:
        assert set(state) == set(states[0])
        for key, array in state.items():
            assert array.dtype == np.float32 and array.tobytes() == states[0][key].tobytes()
    assert jc.load("alexnet", weights="a.orbax").sha256 == jc.load("alexnet").sha256
    assert not [name for name in os.listdir() if name.startswith(".")]


def test_convert_overwrites_only_its_own(fails):
    assert "is no checkpoint, so it is not overwritten" in fails("convert", "alexnet", "--out", "circuits", "--force")
    assert "exists; --force" in fails("convert", "alexnet", "--out", "circuits")
    os.mkdir("a.pth")
    assert "is no file" in fails("convert", "alexnet", "--out", "a.pth", "--force")
    assert "is a file" in fails("convert", "alexnet", "--out", "two.npy/a.pth")
    assert "expected .pth, .pt, .bin, .safetensors, or a directory" in fails("convert", "alexnet", "--out", "a.npz")


def test_info(process, here, tmp_path):
    done = here(tmp_path, "info")
    assert re.search(r"^alexnet +lpips, torchvision, random$", done.stdout, re.M) and "vgg16" in done.stdout
    with compiled() as programs:
        done = here(tmp_path, "info", "alexnet")
    assert not programs, "it is quick"
    assert re.search(r"^features.10 +conv +256 x 256 x 3 x 3 +65536 +256 x 13 x 13 +163 x 163$", done.stdout, re.M)
    layers = json.loads(here(tmp_path, "info", "alexnet", "--json").stdout)["layers"]
    assert layers[0]["weight"] == [64, 3, 11, 11] and [layer["kind"] for layer in layers].count("dense") == 3
    assert "alexnet" in json.loads(here(tmp_path, "info", "--json").stdout)["models"]
    for module in ("jaxcircuits", "weights_conversion"):
        assert f"Usage: python -m {module} " in process(tmp_path, "--help", module=module).stdout
    assert not os.listdir(tmp_path)


X, I = "extract", ("--images", "two.npy")
KEEPS = ("0", "-1", "1.5", "nan", "", "a,b", ".1,")
KERNELS = ("0", "x", "", "1.5", "257", "9" * 30)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((X, "alexnt", "features.3:1"), "no model 'alexnt'; the nearest are 'alexnet'"),
        ((X, "alexnet"), "Missing argument 'FEATURE...'"),
        ((X, "alexnet", "features.33:1", *I), "no layer 'features.33'; the nearest are 'features.3'"),
        ((X, "alexnet", "features.3", *I), "'features.3' is no feature; expected LAYER:CHANNEL"),
        ((X, "alexnet", "../x:1", *I), "no layer '../x'"),
        ((X, "alexnet", "features.3:192", *I), "no channel 192; its channels are 0 to 191"),
        ((X, "alexnet", "features.3:5-2", *I), "runs backwards"),
        ((X, "alexnet", "features.3:-1", *I), "names no channel"),
        ((X, "alexnet", "features.3:1@27,0", *I), "(27, 0) is outside the map of 'features.3', which is 7 x 7"),
        ((X, "alexnet", "features.3:1@here", *I), "unknown position 'here'"),
        ((X, "alexnet", "features.3:none.npy", *I), "no file 'none.npy'"),
        ((X, "alexnet", "features.6:dirs.npy", *I), "directions have 192 entries; 'features.6' has 384"),
        ((X, "alexnet", "features.3:two.npy", *I), "two.npy"),
        ((X, "alexnet", "classifier.6:1", *I), "the lpips weights of alexnet hold nothing for 'classifier.1'"),
        ((X, "vgg11", "features.0:1", *I), "the source lpips has weights for alexnet and vgg16 only"),
        ((X, "alexnet", "features.3:1", "--images", "none"), "there is no 'none'"),
        ((X, "alexnet", "features.3:1", "--images", ""), "it is empty"),
        ((X, "alexnet", "features.3:1", "--images", "circuits"), "circuits"),
        ((X, "alexnet", "features.3:1", "--images", "photos:z"), "photos:z"),
        ((X, "alexnet", "features.3:1", "--images", "dirs.npy"), "expected uint8"),
        ((X, "alexnet", "features.3:1", "--weights", ""), "it is empty"),
        ((X, "alexnet", "features.3:1", "--weights", "none.pth"), "no file none.pth"),
        ((X, "alexnet", "features.3:1", "--weights", "two.npy"), "none of the endings"),
        ((X, "alexnet", "features.3:1", *I, "--criterion", "best"), "'best' is not one of 'snip', 'actgrad'"),
        ((X, "alexnet", "features.3:1", *I, "--criterion", "actgrad", "--absolute", "whole_set"), "'whole_set'"),
        *(((X, "alexnet", "features.3:1", *I, "--keep", k), "keep is") for k in KEEPS),
        *(((X, "alexnet", "features.3:1", *I, "--kernels", k), "kernels is") for k in KERNELS),
        ((X, "alexnet", "features.3:1", *I, "--kernels", "3", "--keep", ".1"), "either keep"),
        ((X, "alexnet", "features.3:1", *I, "--keep", ".1", "--plot", "a.png"), "more than one"),
        ((X, "alexnet", "features.3:1", *I, "--keep", "0.1234567,0.1234568"), "two different circuits"),
        ((X, "alexnet", "features.3:1", *I, "--chunk", "0"), "--chunk"),
        ((X, "alexnet", "features.3:1", *I, "--granularity", "weight"), "'weight' is not one of 'kernel', 'filter'"),
        ((X, "alexnet", "features.3:1", *I, "--seed", "-1"), "--seed"),
        ((X, "alexnet", "features.3:1", *I, "--batch", "9" * 20), "--batch"),
        ((X, "alexnet", "features.3:1", *I, "--criterion", "force", "--steps", "9" * 20), "--steps"),
        ((X, "alexnet", "features.3:1", *I, "--steps", "3"), "snip takes none"),
        ((X, "alexnet", "features.3:1", *I, "--out", ""), "it is empty"),
        (("pictures", "alexnet", "features.3:1", "features.3:1", *I), "two pictures would be written to"),
        (("compare", "alexnet", "features.3:1", *I, "--criteria", "snip, random", "--steps", "3"), "takes none"),
        (("evaluate", "circuits/alexnet/features.3_1.snip.keep0.5.safetensors", "--nulls", "9" * 20), "--nulls"),
        ((X, "alexnet", "features.3:1", *I, "--out", "two.npy"), "'two.npy' is a file"),
        ((X, "alexnet", "features.3:1", *I, "--plot", "circuits"), "ends in .png"),
        ((X, "alexnet", "features.3:1", *I, "--ablation", "noise"), "'noise' is not one of 'zero', 'mean'"),
        (("convert", "alexnet", "--out", "two.npy"), "exists"),
        (("convert", "alexnt"), "no model"),
        (("info", "alexnt"), "no model"),
        (("evaluate",), "Missing argument"),
        (("export", "a/x.safetensors", "b/x.safetensors"), "to the same 'circuits/x'"),
        (("judge",), "No such command 'judge'"),
    ],
)  # fmt: skip
def test_bad_input(arguments, why, fails, monkeypatch):
    monkeypatch.setattr("jaxcircuits.jobs.score_levels", None)  # it fails before any work
    assert why in fails(*arguments)


def test_bad_weights(fails):
    class Evil:
        def __reduce__(self):
            return os.mkdir, ("run",)

    torch.save({"features.0.weight": Evil()}, "evil.pth")
    torch.save({"conv.weight": torch.ones(3, 3)}, "other.pth")
    Path("short.pth").write_bytes(Path("other.pth").read_bytes()[:100])
    for name in ("evil.pth", "other.pth", "short.pth"):
        for command in ((X, "alexnet", "features.3:1", *I), ("convert", "alexnet", "--out", "x")):
            assert "Error: " in fails(*command, "--weights", name)
    assert not os.path.exists("run")


@pytest.mark.filterwarnings("default:.*cannot be read and are skipped")
def test_pictures_that_cannot_be_read(here, workplace, fails):
    folder = workplace / "pictures"
    folder.mkdir()
    command = (X, "alexnet", "features.3:1", "--images", "pictures", "--out", "d", "--keep", ".5")
    assert "Error: " in fails(*command)
    (folder / "bad\n.png").write_bytes(b"no picture")
    assert re.match(r"Error: nothing in .* can be read ", fails(*command))
    Image.new("RGB", (99, 300), "red").save(folder / "good.png")
    assert fails(*command, "--strict").startswith("Error: 1 of 2 files ")
    assert not (workplace / "d").exists()
    done = here(workplace, *command)
    assert (
        "Warning: 1 of 2 files in 'pictures' cannot be read and are skipped" in done.stderr and "1 image" in done.stdout
    )


ON_A_FULL_DISK = """
import json, sys
from pathlib import Path
from click.testing import CliRunner
from jaxcircuits.cli import main

for command in json.loads(sys.argv[1]):
    result = CliRunner().invoke(main, command)
    files = {str(path): path.stat().st_size for path in Path().rglob("*")}
    print(json.dumps([result.exit_code, result.stderr, files]))
"""


def test_a_full_disk(workplace, cache):
    """Files can grow to a kilobyte only."""
    before = {str(path.relative_to(workplace)): size for path, size in listing(workplace).items()}
    circuit = "circuits/alexnet/features.3_1.snip.keep0.5.safetensors"
    commands = (
        (X, "alexnet", "features.3:1", *I, "--out", "d/e", "--keep", "0.5,.1"),
        ("export", circuit, "--out", "d/e"),
        ("convert", "alexnet", "--out", "d/e.pth"),
        ("convert", "alexnet", "--out", "d/e.orbax"),
    )
    shell = ["bash", "-c", 'ulimit -f 1; exec "$0" "$@"', sys.executable, "-c", ON_A_FULL_DISK, json.dumps(commands)]
    options = {"cwd": workplace, "env": environment(cache), "timeout": 240}
    done = subprocess.run(shell, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(ends) == len(commands)
    for code, errors, files in ends:
        assert code == 2 and "Traceback" not in errors
        assert re.match(r"Error: .*(File too large|cannot write)", errors.splitlines()[-1])
        assert files == before


def test_interrupted(workplace, cache):
    command = (X, "alexnet", "features.3:*", *I, "--chunk", "1", "--keep", "0.5,0.1", "--out", "d")
    child = subprocess.Popen(
        [sys.executable, "-m", "jaxcircuits", *command], cwd=workplace, env=environment(cache), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not list((workplace / "d").rglob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130 and errors.strip() == "Interrupted."
    names = [path.name for path in (workplace / "d").rglob("*") if path.is_file()]
    assert names and all(name.endswith(".safetensors") and not name.startswith(".") for name in names)


def test_interrupted_in_a_destructor(tmp_path):
    """Where Python lets no error through."""
    command = """
import os, signal, time
import click
from jaxcircuits.cli.common import Command

class Interrupts:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

@click.command(cls=Command)
def main():
    Interrupts()
    time.sleep(10)
    print("not reached")

main()
"""
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=tmp_path, env=environment(tmp_path), text=True, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "Interrupted.")


def test_a_broken_pipe_is_quiet(cache, tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-m", "jaxcircuits", "info", "vgg16"], cwd=tmp_path, env=environment(cache),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    child.stdout.close()
    assert not child.stderr.read()
    child.wait(60)
    child.stderr.close()


@needs_photos
def test_the_defaults_are_told(here, tmp_path):
    done = here(tmp_path, X, "alexnet", "features.0:3", "--keep", "0.5", "--criterion", "magnitude")
    assert "alexnet with weights lpips (the default), 48 images: photos (the default)" in done.stdout
    (path,) = tmp_path.rglob("*.*ors")
    assert path.relative_to(tmp_path) == Path("circuits/alexnet/features.0_3.magnitude.keep0.5.safetensors")


def test_a_feature_without_a_gradient_has_no_picture(here, workplace):
    mask = np.ones((3, 64), bool)
    mask[:, 1] = False
    manifest = MANIFEST | {"feature": {"layer": "features.0", "channel": 1, "position": None}, "layers": ["features.0"]}
    jc.Circuit({"features.0": mask}, manifest).save(workplace / "dead.safetensors")
    asked = ("pictures", "alexnet", "features.0:1-2", "--circuit", "dead.safetensors", "--weights", "lpips",
             "--steps", "2", "--count", "0")  # fmt: skip
    done = here(workplace, *asked, "--out", "drawn")
    assert "no picture of features.0:1: gradient ascent found no gradient\n\n1 pictures in" in done.stdout
    assert os.listdir("drawn/alexnet/pictures") == ["features.0_2.in.dead.png"]
    rows = json.loads(here(workplace, *asked, "--out", "drawn", "--json").stdout)["features"]
    assert rows[0]["picture"] is None and rows[1]["picture"].endswith("features.0_2.in.dead.png")
