"""Hostile and broken files: each is read, or refused in one sentence; nothing else happens.

By default some hundreds; `pytest -m full tests/test_hostile.py -n 0 -s` has 10,000 and prints how many were refused.
"""

import os
import resource
import time

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.hostile import CASES, survives

FEW = {"circuit": 80, "atlas": 40, "state_dict": 60, "state_file": 50, "checkpoint": 6, "image": 60, "array": 60,
       "feature": 60, "page": 20}  # fmt: skip
MANY = {"circuit": 2000, "atlas": 1200, "state_dict": 1700, "state_file": 1300, "checkpoint": 200, "image": 1300,
        "array": 1100, "feature": 900, "page": 300}  # fmt: skip
GROWTH = 1500  # megabytes by which the process may become larger in one campaign


def campaign(kind, number, place):
    """So many files of one kind; how many of them were refused."""
    refused = []

    @seed(8)
    @given(st.randoms(use_true_random=True))
    @settings(max_examples=number, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    def one(rng):
        refused.append(survives(kind, rng, place) is not None)

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
