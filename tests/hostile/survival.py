"""What must hold, whatever a file is."""

import os
import shutil
import signal
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from click.testing import CliRunner

import jaxcircuits as jc
from jaxcircuits.cli import main
from weights_conversion import ConversionError

Attempt = Callable[[], Any]
Case = Callable[[Random, Path], Attempt]

SECONDS = 20  # of computing for one file, however it is made


class Hang(BaseException):
    pass


class Refused(ValueError):
    """The command line has said what is wrong."""


def command(*arguments: str) -> None:
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code in (0, 1, 2), result.output
    if result.exit_code == 1:
        assert arguments[0] == "atlas", result.output
    if result.exit_code == 2:
        raise Refused(result.stderr.strip().splitlines()[-1].removeprefix("Error: "))


@contextmanager
def at_most(seconds: int):
    """Ends what computes for so long, or waits ten times as long, as it would for a pipe."""

    def late(*_):
        raise Hang(f"more than {seconds} seconds")

    clocks = {signal.SIGALRM: (signal.ITIMER_REAL, 10 * seconds), signal.SIGPROF: (signal.ITIMER_PROF, seconds)}
    before = {which: signal.signal(which, late) for which in clocks}
    for clock, limit in clocks.values():
        signal.setitimer(clock, limit)
    try:
        yield
    finally:
        for which, (clock, _) in clocks.items():
            signal.setitimer(clock, 0)
            signal.signal(which, before[which])


def prepared(place: Path) -> Path:
    """An empty folder with what a case needs, and something that must stay as it is."""
    shutil.rmtree(place, ignore_errors=True)
    for folder in ("in", "out", "cwd"):
        (place / folder).mkdir(parents=True)
    (place / "victim").write_text("untouched")
    return place


def survives(case: Case, rng: Random, place: Path) -> str | None:
    """One case; the sentence with which it was refused, or None. Fails if anything else happens."""
    attempt = case(rng, prepared(place))
    beside, said = set(os.listdir(place.parent)), None
    os.chdir(place / "cwd")
    with at_most(SECONDS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            attempt()
        except (jc.InputError, ConversionError, Refused) as error:
            said = str(error)
            assert said and said.isprintable() and len(said) < 2100, said
    assert not os.listdir(place / "cwd"), "something was written where nothing was asked for"
    assert (place / "victim").read_text() == "untouched"
    assert set(os.listdir(place)) == {"in", "out", "cwd", "victim"} and set(os.listdir(place.parent)) == beside
    assert not [path for path in (place / "out").rglob(".*")], "something was left half-written"
    return said
