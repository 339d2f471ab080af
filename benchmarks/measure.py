"""Assert that the engines agree, time them in turn, and describe the machine."""

import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import jaxcircuits as jc
from benchmarks.cases import Case, gigaflops
from benchmarks.engines import Remote

# Relative to a layer's largest score. Rounding switches a ReLU or a pool's winner now and then: r of the curve may
# differ by that, and scores of a network as deep as VGG 16.
TOLERANCE = {"curve": 0.01, "vgg16": 2e-3}


def matrix_rate(size: int = 2048, repeats: int = 5) -> float:
    """GFLOP/s of a large float32 matrix product in JAX, the median of a few."""
    import jax
    import jax.numpy as jnp

    with jax.default_matmul_precision("highest"):
        product = jax.jit(jnp.matmul)
        a = jnp.ones((size, size))
        product(a, a).block_until_ready()
        rates = []
        for _ in range(repeats):
            start = time.perf_counter()
            product(a, a).block_until_ready()
            rates.append(2 * size**3 / (time.perf_counter() - start) / 1e9)
    return statistics.median(rates)


def measure(case: Case, rounds: int, rate: float, names: tuple[str, ...]) -> dict[str, Any]:
    """Assert that the engines agree, then time them in turn, A B C A B C ...

    Returns:
        A record: medians of the times and of the paired ratios, per image and feature.
    """
    remotes = {name: Remote(name, case) for name in names}
    first = {name: remote.ask("first") for name, remote in remotes.items()}
    agree(case, {name: results for name, (results, _) in first.items()})
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            times[name].append(remotes[name].ask("run"))
    peaks = {name: remote.stop() for name, remote in remotes.items()}
    ours, work = times["jaxcircuits"], gigaflops(jc.load(case.model).network(), case)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    # what the first run took longer than the others
    compiling = (first["jaxcircuits"][1] - seconds["jaxcircuits"]) * case.features * case.images
    return {
        "case": case.name,
        "model": case.model,
        "layer": case.layer,
        "what": case.what,
        "features": case.features,
        "images": case.images,
        "milliseconds": {name: 1e3 * value for name, value in seconds.items()},
        "ratio": {name: float(np.median(np.divide(times[name], ours))) for name in names if name != "jaxcircuits"},
        "dense_gigaflops": work,
        "gigaflops_a_second": work / seconds["jaxcircuits"],
        "share_of_matrix_rate": work / seconds["jaxcircuits"] / rate,
        "peak_megabytes": {name: peak / 1e6 for name, peak in peaks.items()},
        "result_megabytes": sum(array.nbytes for array in first["jaxcircuits"][0]) / 1e6,
        "compile_seconds": max(0.0, compiling),
    }


def agree(case: Case, results: dict[str, list[np.ndarray]]) -> None:
    """Raise an AssertionError unless the baselines, on as many features as they did, compute what jaxcircuits does."""
    ours = results["jaxcircuits"]
    for name in results:
        for mine, theirs in zip(ours, results[name], strict=True):
            mine = mine[: len(theirs)]
            error = np.nanmax(np.abs(mine - theirs)) / np.nanmax(np.abs(mine))
            limit = TOLERANCE.get(case.what, TOLERANCE.get(case.model, 1e-4))
            assert error < limit, f"{case.name}: {name} differs by {error:.1e} of the largest value"
            assert (np.isnan(mine) == np.isnan(theirs)).all(), f"{case.name}: {name} is nan elsewhere"


def surroundings(rounds: int, rate: float) -> dict[str, Any]:
    """The machine, the versions and how they were measured, as they stand in the JSON."""
    return {**machine(), "matrix_gigaflops_a_second": rate, "rounds": rounds}


def machine(packages: tuple[str, ...] = ("jax", "jaxlib", "flax", "torch", "numpy")) -> dict[str, Any]:
    """The machine and the versions."""
    import jax

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((x.partition(":")[2].strip() for x in info.read_text().splitlines() if "model name" in x), cpu)
    devices = [device.device_kind for device in jax.devices()]
    return {
        "hardware": {"cpu": cpu, "cores": os.cpu_count(), "devices": devices, "python": platform.python_version()},
        "versions": {name: version(name) for name in packages},
    }
