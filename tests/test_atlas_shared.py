"""One atlas by many devices, processes and workers: the same, down to the bytes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jaxcircuits as jc
from tests.test_atlas import contents

pytestmark = pytest.mark.timeout(900)  # about twenty seconds each where nothing else runs

HERE = Path(__file__).parents[1]
SCRIPT = HERE / "tests" / "atlas_shared.py"


def environment(tmp_path, devices=1):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    cache = os.environ.get("XDG_CACHE_HOME") or str(tmp_path / "cache")
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HERE), "XLA_FLAGS": flags, "XDG_CACHE_HOME": cache}


def started(command, environment, log, **options):
    with open(log, "wb") as file:
        return subprocess.Popen(list(map(str, command)), env=environment, stdout=file, stderr=file, **options)


def waited(process, log, seconds=800):
    assert process.wait(seconds) == 0, Path(log).read_text()


@pytest.mark.slow
def test_eight_devices(tmp_path):
    """Chunks are scored by one program over all devices; or, where there are no gradients, in a thread each."""
    log = tmp_path / "log"
    waited(started([sys.executable, SCRIPT, tmp_path, "devices"], environment(tmp_path, 8), log), log)
    assert log.read_text() == "8\n"
    ones = sorted(tmp_path.glob("*-1"))
    assert [path.name for path in ones] == ["random-features.0-1", "snip-features.0-1", "snip-layer1.conv1-1"]
    for one in ones:
        found = contents(one)
        assert found == contents(one.with_name(one.name.replace("-1", "-8"))) and len(found) >= 8
        assert jc.verify_atlas(one) == []


@pytest.mark.full
def test_two_processes(tmp_path):
    """The mesh goes over the devices of both; each writes the chunks of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    both = [
        started([sys.executable, SCRIPT, tmp_path, "process", address, 2, i], environment(tmp_path), tmp_path / f"{i}")
        for i in range(2)
    ]
    for i, process in enumerate(both):
        waited(process, tmp_path / f"{i}")
        assert (tmp_path / f"{i}").read_text().splitlines()[-1] == "2 2"
    (tmp_path / "alone").mkdir()
    alone = [sys.executable, SCRIPT, tmp_path / "alone", "process", address, 1, 0]
    waited(started(alone, environment(tmp_path), tmp_path / "log"), tmp_path / "log")
    assert contents(tmp_path / "atlas") == contents(tmp_path / "alone" / "atlas")


@pytest.mark.slow
def test_a_dask_cluster_that_loses_a_worker(tmp_path):
    """A scheduler and two workers in processes of their own; one is killed when the first chunk is there, and in
    another atlas the scheduler."""
    np.save(tmp_path / "two.npy", np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8))
    env, python, running = environment(tmp_path), [sys.executable, "-m"], []
    local = ["--host", "127.0.0.1", "--no-dashboard"]
    asked = ["jaxcircuits", "atlas", "alexnet", "features.0:0-11", "--images", "two.npy", "--chunk", "2"]
    try:
        scheduler = ["distributed.cli.dask_scheduler", *local, "--port", "0", "--scheduler-file", "scheduler.json"]
        running.append(started(python + scheduler, env, tmp_path / "scheduler", cwd=tmp_path))
        until(lambda: (tmp_path / "scheduler.json").exists() and (tmp_path / "scheduler.json").read_text().strip())
        address = json.loads((tmp_path / "scheduler.json").read_text())["address"]
        worker = ["distributed.cli.dask_worker", address, *local, "--no-nanny", "--nthreads", "1"]
        running += [started(python + worker, env, tmp_path / f"worker-{i}", cwd=tmp_path) for i in range(2)]
        client = started([*python, *asked, "--dask", address, "--out", "atlas"], env, tmp_path / "log", cwd=tmp_path)
        running.append(client)
        until(lambda: list(tmp_path.glob("atlas/features.0/*.json")) or client.poll() is not None)
        running[1].send_signal(signal.SIGKILL)
        waited(client, tmp_path / "log")
        again = [*python, *asked, "--dask", address, "--out", "lost"]
        client = started(again, env, tmp_path / "lost.log", cwd=tmp_path)
        running.append(client)
        until(lambda: list(tmp_path.glob("lost/features.0/*.json")) or client.poll() is not None)
        running[0].send_signal(signal.SIGKILL)
        assert client.wait(400) == 2
        assert f"the Dask scheduler at '{address}' is gone" in (tmp_path / "lost.log").read_text().splitlines()[-1]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert jc.verify_atlas(tmp_path / "atlas") == []
    log = started([*python, *asked, "--out", "alone", "--json"], env, tmp_path / "alone.log", cwd=tmp_path)
    waited(log, tmp_path / "alone.log")
    events = [json.loads(line) for line in (tmp_path / "alone.log").read_text().splitlines()]
    assert [event["event"] for event in events] == ["begun", *["chunk"] * 6, "done"]
    assert contents(tmp_path / "atlas") == contents(tmp_path / "alone")


def until(true, seconds=400):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
