"""The same command gives the same bytes; how work is divided changes scores by rounding alone, and masks in ties."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import jaxcircuits as jc
from tests.test_cli import environment

LAYER = "features.3"
KEEPS = (0.5, 0.2, 0.05)
TOLERANCE = 1e-5

COMMANDS = (
    "extract alexnet features.0:1 features.3:5 --images two.npy --scores --keep .5,.1",
    "diagram circuits/alexnet/features.3_5.snip.keep0.1.safetensors --pictures none --format html,svg,png,pdf,json",
    "compare alexnet features.0:1 --images two.npy --test-images other.npy --criteria snip,random --keep .5,.1",
    "atlas alexnet features.0:0-4 --images two.npy --chunk 2 --scores float32 --keep .5,.1 --out atlas",
)


IN_ONE_PROCESS = """
import sys
from jaxcircuits.cli import main
for command in sys.argv[1:]:
    main(command.split(), standalone_mode=False)
"""


def written(folder, commands, cores=None, **variables):
    """What commands write into a new folder, in a new process: {path: bytes}. Each folder has its own cache of compiled
    programs."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    np.save(folder / "two.npy", pixels[:4])
    np.save(folder / "other.npy", pixels[4:])
    given = {*folder.iterdir()}
    pinned = [] if cores is None else ["taskset", "--cpu-list", cores]
    subprocess.run(
        [*pinned, sys.executable, "-c", IN_ONE_PROCESS, *commands], cwd=folder, check=True,
        env=environment(str(folder / ".cache")) | variables, capture_output=True,
    )  # fmt: skip
    files = [path for path in folder.rglob("*") if path.is_file() and path not in given]
    contents = {path.relative_to(folder): path for path in files}
    return {name: path.read_bytes() for name, path in contents.items() if name.parts[0] != ".cache"}


MEASURED = ("seconds", "compiling", "peak_bytes")


def without_times(path, content):
    """All but the time and memory that `compare` has measured; its Markdown says the same as its JSON."""
    drop = lambda row: {key: value for key, value in row.items() if key not in MEASURED}  # noqa: E731
    if path.suffix == ".csv":
        return [drop(row) for row in csv.DictReader(io.StringIO(content.decode()))]
    if path.suffix == ".json" and b'"costs"' in content:
        return json.loads(content, object_hook=drop)
    return None if path.suffix == ".md" else content


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_same_command_gives_the_same_bytes(tmp_path):
    first, second = (written(tmp_path / name, COMMANDS) for name in "ab")
    assert {path.suffix for path in first} >= {".safetensors", ".html", ".svg", ".png", ".pdf", ".csv", ".parquet"}
    assert first.keys() == second.keys()
    others = [str(path) for path in first if without_times(path, first[path]) != without_times(path, second[path])]
    assert not others


def ties(scores, relevant, keep):
    """Which kernels either mask may have, {layer: (F, I, O) bool}: their score is the last kept one's, to rounding."""
    flat = [np.concatenate([np.asarray(part).reshape(len(part), -1) for part in parts.values()], 1)
            for parts in (scores, relevant)]  # fmt: skip
    ordered = -np.sort(-np.where(flat[1], flat[0], -np.inf), axis=1)
    counts = np.maximum(1, np.floor(keep * flat[1].sum(1) + 0.5)).astype(int)
    last = ordered[np.arange(len(ordered)), counts - 1][:, None, None]
    largest = max(np.max(part) for part in scores.values())
    return {name: np.abs(part - last) <= 2 * TOLERANCE * largest for name, part in scores.items()}


def agree(scores, others, relevant):
    """Scores to 1e-5 of the layer's largest; masks in all but ties."""
    for name, score in scores.items():
        np.testing.assert_allclose(others[name], score, rtol=TOLERANCE, atol=TOLERANCE * score.max(), err_msg=name)
    for keep in KEEPS:
        masks = [top(values, relevant, keep) for values in (scores, others)]
        either = ties(scores, relevant, keep)
        for name in scores:
            assert (either[name] | (masks[0][name] == masks[1][name])).all(), (name, keep)


def top(values, relevant, keep):
    record = jc.scores.Record("snip", "per_image", "abs", 1, None, "float32")
    return {
        name: np.asarray(mask)
        for name, mask in jc.top_kernels(jc.Scores(values, relevant, tuple(values), record), keep=keep).items()
    }


@pytest.fixture(scope="module")
def whole(small):
    """Scores in one chunk and one batch."""
    found = {}
    for criterion, absolute in (("snip", "per_image"), ("snip", "whole_set"), ("actgrad", "none")):
        options = {"criterion": criterion, "absolute": absolute, "chunk": 6, "batch": 5}
        found[criterion, absolute] = jc.score(small.model, small.images, jc.Features(LAYER), **options)
    return SimpleNamespace(get=found.get)  # of which hypothesis prints little


@pytest.mark.timeout(900)
@hypothesis.settings(max_examples=6, derandomize=True)
@hypothesis.given(
    st.integers(1, 5), st.integers(1, 4), st.permutations(range(6)),
    st.sampled_from([("snip", "per_image"), ("snip", "whole_set"), ("actgrad", "none")]),
)  # fmt: skip
def test_chunks_and_batches(small, whole, chunk, batch, channels, which):
    """Neither how many features are scored together, and which, nor how many images."""
    options = {"criterion": which[0], "absolute": which[1], "chunk": chunk, "batch": batch}
    found = jc.score(small.model, small.images, jc.Features(LAYER, channels), **options)
    expected = {name: np.asarray(value)[list(channels)] for name, value in whole.get(which).values.items()}
    relevant = {name: np.asarray(value) for name, value in found.relevant.items()}
    signless = [{n: np.abs(np.asarray(v)) for n, v in a.items()} for a in (expected, found.values)]
    agree(*signless, relevant)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/usr/bin/taskset").exists(), reason="only Linux's taskset keeps a process on one core")
def test_cores_and_devices(tmp_path):
    """One core and all, one device and three: the atlas of the real command."""
    command = [f"{COMMANDS[3]} --criterion actgrad"]
    devices = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=3"
    ways = {"all": {}, "one core": {"cores": "0"}, "devices": {"XLA_FLAGS": devices}}
    for way, options in ways.items():
        written(tmp_path / way, command, **options)
    found = {}
    for way in ways:
        atlas = jc.Atlas(tmp_path / way / "atlas")
        circuits = [atlas.circuit(label, keep=0.1) for label in atlas.features]
        found[way] = {name: np.stack([c.scores[name] for c in circuits]) for name in circuits[0].masks}
    relevant = {name: np.ones(value.shape, bool) for name, value in found["all"].items()}
    relevant["features.0"] &= np.arange(64) == np.arange(5)[:, None, None]
    for way in ("one core", "devices"):
        agree(found["all"], found[way], relevant)
