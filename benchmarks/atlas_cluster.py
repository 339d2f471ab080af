"""How an atlas scales over the workers of a cluster: a simulation, calibrated on real runs with 1, 2 and 4 workers.

    python -m benchmarks.atlas_cluster measure     real scheduler, real workers; writes results/atlas-cluster.json
    python -m benchmarks.atlas_cluster simulate    compares the simulation with them, and predicts more workers

Workers are pinned to one core each, so that on a machine with two cores two workers can be twice as fast and four not.
"""

from __future__ import annotations

import heapq
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

RESULTS = Path(__file__).parent / "results" / "atlas-cluster.json"
WORKERS, CORES, CHUNKS = (1, 2, 4), 2, 32


class Cluster(NamedTuple):
    """What a run depends on besides its tasks.

    Attributes:
        workers: how many. cores: how many of them can compute at once.
        start: seconds before a worker's first chunk: reading, compiling.
        dispatch: seconds the one scheduler is busy for a task.
        files, bandwidth: files and bytes a second that the one file system takes.
    """

    workers: int
    cores: int
    start: float
    dispatch: float
    files: float = 500.0
    bandwidth: float = 1e9


def simulate(tasks: np.ndarray, size: float, cluster: Cluster) -> float:
    """Seconds until the last chunk is written, with a scheduler and a file system that serve one task at a time.

    Args:
        tasks: seconds of each on a core or device of its own, in the order of the queue.
        size: bytes of a chunk. cluster: see there.
    """
    slower = max(1.0, cluster.workers / cluster.cores)
    free = [(cluster.start * slower, w) for w in range(cluster.workers)]
    heapq.heapify(free)
    scheduler = disk = end = 0.0
    for seconds in tasks:
        at, worker = heapq.heappop(free)
        scheduler = max(scheduler, at) + cluster.dispatch
        computed = scheduler + seconds * slower
        # a chunk and its record; a file system that is busy makes the others wait
        disk = max(disk, computed) + 2 / cluster.files + size / cluster.bandwidth
        end = max(end, disk)
        heapq.heappush(free, (disk, worker))
    return end


def measure() -> None:
    """Run one small atlas with 1, 2 and 4 workers, and empty tasks to see what the scheduler itself takes."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        _run(folder, 1, "warm")  # programs are in the cache from here on
        for workers in WORKERS:
            runs.append(_run(folder, workers, f"{workers}"))
            print(json.dumps(runs[-1]), flush=True)
    document = {"cores": CORES, "chunks": CHUNKS, "load": os.getloadavg()[0], "dispatch": _dispatch(), "runs": runs}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")


def _run(folder: str, workers: int, name: str) -> dict:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", folder)}
    python, local, running = [sys.executable, "-m"], ["--host", "127.0.0.1", "--no-dashboard"], []
    address = Path(folder, f"{name}.json")
    try:
        scheduler = ["distributed.cli.dask_scheduler", *local, "--port", "0", "--scheduler-file", str(address)]
        running.append(subprocess.Popen(python + scheduler, env=env, stderr=subprocess.DEVNULL))
        while not (address.exists() and address.read_text().strip()):
            time.sleep(0.1)
        worker = [
            "distributed.cli.dask_worker",
            "--scheduler-file",
            str(address),
            *local,
            "--no-nanny",
            "--nthreads",
            "1",
        ]
        for w in range(workers):
            pinned = ["taskset", "-c", str(w % CORES), *python, *worker]
            running.append(subprocess.Popen(pinned, env=env, stderr=subprocess.DEVNULL, cwd=folder))
        where = json.loads(address.read_text())["address"]
        asked = ["alexnet", f"features.0:0-{CHUNKS - 1}", "--images", "photos:a", "--chunk", "1", "--keep", ".5,.1"]
        command = [
            *python,
            "jaxcircuits",
            "atlas",
            *asked,
            "--json",
            "--dask",
            where,
            "--out",
            str(Path(folder, f"atlas-{name}")),
        ]
        lines = subprocess.run(command, env=env, cwd=folder, check=True, capture_output=True, text=True).stdout
    finally:
        for process in running:
            process.kill()
            process.wait()
    events = [json.loads(line) for line in lines.splitlines()]
    ends = [event["seconds"] for event in events if event["event"] == "chunk"]
    return {"workers": workers, "ends": ends, "bytes": events[1]["bytes"]}


def _dispatch(tasks: int = 2000) -> float:
    """Seconds of the scheduler's for a task that does nothing."""
    from distributed import Client, LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        client.gather(client.map(abs, range(10), pure=False))
        start = time.perf_counter()
        client.gather(client.map(abs, range(tasks), pure=False))
        return (time.perf_counter() - start) / tasks


def report() -> None:
    """Print the simulation beside what was measured, and what it says of clusters of GPUs."""
    found = json.loads(RESULTS.read_text())
    one = next(run for run in found["runs"] if run["workers"] == 1)
    # with one worker: what came before the first chunk, and what each of the others took
    seconds = float(np.median(np.diff(one["ends"])))
    start, dispatch = one["ends"][0] - seconds, found["dispatch"]
    print(f"one worker: {start:.2f} s to start, {seconds * 1e3:.0f} ms a chunk; {dispatch * 1e3:.2f} ms to dispatch")
    for run in found["runs"]:
        cluster = Cluster(run["workers"], found["cores"], start, dispatch)
        said, real = simulate(np.full(found["chunks"], seconds), run["bytes"], cluster), run["ends"][-1]
        print(f"{run['workers']} workers: simulated {said:.1f} s, measured {real:.1f} s ({said / real - 1:+.0%})")
    print("\nGPUs, chunks of 5 MB that take 60 s (20 % spread), 60 s to start a worker:\n")
    print("| GPUs | 2 chunks a GPU | 10 | 50 |\n|---|---|---|---|")
    rng = np.random.default_rng(0)
    for workers in (8, 64, 256, 1000, 4000):
        cells = []
        for each in (2, 10, 50):
            tasks = np.sort(60 * rng.lognormal(0, 0.2, workers * each))[::-1]
            taken = simulate(tasks, 5e6, Cluster(workers, workers, 60, dispatch))
            cells.append(f"{tasks.sum() / workers / taken:.0%}")
        print(f"| {workers} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    {"measure": measure, "simulate": report}[sys.argv[1]]()
