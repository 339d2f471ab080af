"""Device calls that run at the same time: how many, and that they change nothing."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxcircuits as jc
from jaxcircuits import chunks, options
from jaxcircuits.streams import Streams


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("tasks", [0, 1, 7])
def test_streams_take_turns(number, tasks):
    with Streams([[] for _ in range(number)]) as streams:
        for task in range(tasks):
            streams.go_on(lambda done, task: [*done, task], task)
        results = streams.results()
    assert sorted(results) == sorted([*range(s, tasks, number)] for s in range(number))


def test_streams_run_at_the_same_time():
    meeting = threading.Barrier(2, timeout=60)  # neither comes through alone
    with Streams([0, 0]) as streams:
        for _ in range(4):
            streams.go_on(lambda value: meeting.wait() * 0 + value + 1)
        assert streams.results() == (2, 2)


def test_an_error_in_a_stream_is_raised():
    def fails(value):
        raise ZeroDivisionError

    with Streams([0, 0]) as streams:
        streams.go_on(fails)
        with pytest.raises(ZeroDivisionError):
            streams.results()


INTERRUPTED = """
import os, signal, threading, time
from jaxcircuits.streams import Streams

here = threading.Event()

class Slow:
    def __del__(self):  # in the stream's thread, after its work
        threading.Timer(.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        time.sleep(1)
        print("gone", flush=True)

try:
    with Streams([0, 0]) as streams:
        streams.go_on(lambda value, slow: here.wait(), Slow())
        here.set()
        streams.results()
except KeyboardInterrupt:
    raise SystemExit(130)
"""


def test_threads_end_before_a_process_does():
    """Whose wait for them was interrupted."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "gone\n", "")


@pytest.mark.parametrize("criterion", ["snip", "actgrad"])
def test_streams_do_not_change_scores(small, monkeypatch, criterion):
    """Five images: three for one stream, two for the other; the same as all in one call."""
    features = jc.Features("features.3", [0, 4])
    found = {}
    for size in (chunks.Sizes(2, 5, 1), chunks.Sizes(2, 1, 2)):
        monkeypatch.setattr(options, "sizes", lambda *_, size=size, **__: size)
        found[size.streams] = jc.score(small.model, small.images, features, criterion=criterion).values
    for one, two in zip(*map(jax.tree.leaves, found.values()), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6 * np.abs(one).max())


@pytest.mark.parametrize("criterion", ["snip", "actgrad"])
@pytest.mark.parametrize("sizes", [chunks.Sizes(5, 5, 1, 2), chunks.Sizes(5, 1, 2, 3), chunks.Sizes(2, 2, 1, 2)])
def test_features_divided_among_calls_have_the_same_scores(small, monkeypatch, criterion, sizes):
    """Also where the last part, or the last chunk, is filled up, and images are not as many for each stream."""
    features, found = jc.Features("features.3", [0, 4, 1, 3, 2]), []
    for size in (chunks.Sizes(5, 5, 1), sizes):
        monkeypatch.setattr(options, "sizes", lambda *_, size=size, **__: size)
        scores = jc.score(small.model, small.images, features, criterion=criterion)
        found.append((scores.values, scores.relevant))
    for one, two in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6 * np.abs(one).max())


def test_how_many_calls_at_a_time(small, monkeypatch):
    """As many as there are cores and images, if memory leaves enough features for each."""
    network = small.model.network((13, 11, 3))
    layers = tuple(name for name, layer in network.layers.items() if not layer.trouble)[:2]

    def sizes(images, **given):
        asked = {"chunk": None, "batch": None} | given
        return chunks.sizes(network, layers, images=images, by_weight=False, **asked)

    monkeypatch.setattr(chunks, "cores", lambda: 4)
    assert sizes(1) == chunks.Sizes(chunks.LARGEST, 1, 1, 4)
    assert sizes(2) == chunks.Sizes(chunks.LARGEST, 1, 2, 2)
    assert sizes(3) == chunks.Sizes(chunks.LARGEST, 1, 3, 1)
    assert sizes(1, features=3 * chunks.ENOUGH) == chunks.Sizes(3 * chunks.ENOUGH, 1, 1, 3)
    assert sizes(1, features=2 * chunks.ENOUGH - 1) == chunks.Sizes(2 * chunks.ENOUGH - 1, 1, 1, 1)
    assert sizes(1, features=200, chunk=100) == chunks.Sizes(100, 1, 1, 4)
    assert chunks.Sizes(100, 1, 1, 3).together == 34
    assert sizes(8) == chunks.Sizes(chunks.LARGEST, 2, 4)
    assert sizes(9) == chunks.Sizes(chunks.LARGEST, 3, 4)
    assert sizes(100) == chunks.Sizes(chunks.LARGEST, 4, 4)
    assert sizes(8, batch=4, chunk=3) == chunks.Sizes(3, 4, 2)
    a_feature = chunks._bytes_a_feature(network, layers, batch=1, by_weight=False)
    monkeypatch.setattr(chunks, "_budget", lambda: 2.5 * chunks.ENOUGH * a_feature)
    assert sizes(8) == chunks.Sizes(int(1.25 * chunks.ENOUGH), 1, 2)
    monkeypatch.setattr(chunks, "_budget", lambda: 0.5 * chunks.ENOUGH * a_feature)
    assert sizes(8) == chunks.Sizes(chunks.ENOUGH // 2, 1, 1)
    monkeypatch.setattr(chunks, "_budget", lambda: 0.5 * a_feature)
    assert sizes(8) == chunks.Sizes(1, 1, 1)


def test_float64(small):
    """It is refused in one sentence, and the way out that this names works in threads, too."""
    features = jc.Features("features.3", [1, 2])
    wanted = jc.score(small.model, small.images, features)
    masks = jc.top_kernels(wanted, keep=0.3)
    r = jc.correlation(small.model, small.images, features, masks)
    jax.config.update("jax_enable_x64", True)
    try:
        for run in (jc.score, lambda *a: jc.evaluate(*a, masks), lambda *a: list(jc.extract(*a, keep=0.3))):
            with pytest.raises(jc.InputError, match="jax_enable_x64 is set, and jaxcircuits computes in float32"):
                run(small.model, small.images, features)
        with jax.enable_x64(False):
            found = jc.score(small.model, small.images, features)
            np.testing.assert_array_equal(jc.correlation(small.model, small.images, features, masks), r)
    finally:
        jax.config.update("jax_enable_x64", False)
    for name in wanted.layers:
        np.testing.assert_array_equal(found.values[name], wanted.values[name])
