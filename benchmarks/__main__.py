"""`python -m benchmarks`: assert that the engines agree, time them in turn, print a table and write JSON."""

import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxcircuits as jc
from benchmarks.cases import FULL, QUICK, Case, gigaflops
from benchmarks.engines import NAMES, Remote

# Relative to a layer's largest score; r of the curve may differ by a flipped ReLU.
TOLERANCE = {"curve": 0.01}


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


def measure(case: Case, rounds: int, rate: float) -> dict[str, Any]:
    """Assert that the engines agree, then time them in turn, A B C A B C ...; medians of times and of paired ratios."""
    remotes = {name: Remote(name, case) for name in NAMES}
    first = {name: remote.ask("first") for name, remote in remotes.items()}
    agree(case, {name: results for name, (results, _) in first.items()})
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(rounds):
        for name in NAMES:
            times[name].append(remotes[name].ask("run"))
    memory = {name: remote.stop() for name, remote in remotes.items()}
    ours = times["jaxcircuits"]
    median = statistics.median(ours)
    record: dict[str, Any] = {
        "case": case.name,
        "milliseconds": {name: 1e3 * statistics.median(values) for name, values in times.items()},
        "ratio": {name: statistics.median(np.divide(times[name], ours)) for name in NAMES[1:]},
        "peak_megabytes": {name: peak / 1e6 for name, peak in memory.items()},
        "first_run_seconds": {name: seconds for name, (_, seconds) in first.items()},
    }
    if case.what != "curve":
        work = gigaflops(jc.load(case.model).network(), case)
        record |= {"dense_gigaflops": work, "share_of_matrix_rate": work / median / rate}
    return record


def agree(case: Case, results: dict[str, list[np.ndarray]]) -> None:
    """Raise an AssertionError unless the baselines compute what jaxcircuits computes."""
    ours = results["jaxcircuits"]
    for name in NAMES[1:]:
        for mine, theirs in zip(ours, results[name], strict=True):
            error = np.nanmax(np.abs(mine[: len(theirs)] - theirs)) / np.nanmax(np.abs(mine))
            limit = TOLERANCE.get(case.what, 1e-4)
            assert error < limit, f"{case.name}: {name} differs by {error:.1e} of the largest value"


def hardware() -> dict[str, Any]:
    import jax

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((x.partition(":")[2].strip() for x in info.read_text().splitlines() if "model name" in x), cpu)
    devices = [device.device_kind for device in jax.devices()]
    return {"cpu": cpu, "cores": os.cpu_count(), "devices": devices, "python": platform.python_version()}


def show(records: list[dict[str, Any]]) -> None:
    columns = ("case", "ms", "reference", "strong", "dense GFLOP", "of matrix rate", "peak MB", "first run s")
    table = Table(*columns, title="per image and feature; ratios: how many times longer the PyTorch baselines take")
    for record in records:
        share = record.get("share_of_matrix_rate")
        cells = [
            f"{record['milliseconds']['jaxcircuits']:.2f}",
            *(f"{record['ratio'][name]:.2f} x" for name in NAMES[1:]),
            f"{record['dense_gigaflops']:.2f}" if share else "",
            f"{share:.0%}" if share else "",
            f"{record['peak_megabytes']['jaxcircuits']:.0f}",
            f"{record['first_run_seconds']['jaxcircuits']:.1f}",
        ]
        table.add_row(record["case"], *cells)
    Console(width=150).print(table)


@click.command()
@click.option("--quick", is_flag=True, help="A few cases, in minutes.")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Times each engine takes its turn."
)
@click.option("--only", help="Only cases whose name holds this.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures as JSON.")
def main(quick: bool, rounds: int, only: str | None, out: Path | None) -> None:
    """Time jaxcircuits next to two PyTorch baselines."""
    rate = matrix_rate()
    cases = [case for case in (QUICK if quick else FULL) if not only or only in case.name]
    records = []
    for case in cases:
        records.append(measure(case, rounds, rate))
        click.echo(f"{case.name}: {records[-1]['milliseconds']['jaxcircuits']:.2f} ms", err=True)
    show(records)
    versions = {name: version(name) for name in ("jax", "jaxlib", "flax", "torch", "numpy")}
    document = {"hardware": hardware(), "versions": versions, "matrix_gigaflops_a_second": rate, "rounds": rounds}
    if out is not None:
        out.write_text(json.dumps({**document, "cases": records}, indent=2) + "\n")


if __name__ == "__main__":
    main()
