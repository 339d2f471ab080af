"""Hostile and broken files: each is read, or refused in one sentence; nothing else happens.

By default some hundreds; `pytest -m full tests/test_hostile.py -n 0 -s` has 10,000 and prints how many were refused.
"""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.hostile import CASES
from tests.hostile.atlases import altered
from tests.hostile.pickles import Evil
from tests.hostile.survival import prepared, survives

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
    altered(place / "in", model="../../../planted")
    where = ["--keep", "0.5", "--out", str(place / "out")]
    assert in_a_process(["query", str(place / "in"), "circuit", "features.0:3", *where], place)[0] == 0
    assert os.listdir(place / "out") == [".._.._.._planted"]
