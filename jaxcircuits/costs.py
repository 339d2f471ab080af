"""What a piece of work costs: time, without that of compiling, and memory."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass
class Cost:
    """What work has cost; costs add up.

    Attributes:
        seconds: on the clock, without `compiling`.
        compiling: seconds that JAX spent tracing, lowering and compiling programs, or reading them from its cache.
        peak_bytes: the most memory that was resident in this process at once, with everything that it held before and
            with what compiling took; an accelerator's own memory is not in it. None where the system does not tell.
    """

    seconds: float = 0.0
    compiling: float = 0.0
    peak_bytes: int | None = None

    def __iadd__(self, other: Cost) -> Cost:
        self.seconds += other.seconds
        self.compiling += other.compiling
        self.peak_bytes = max(filter(None, (self.peak_bytes, other.peak_bytes)), default=None)
        return self


@contextlib.contextmanager
def measured() -> Iterator[Cost]:
    """Measures the body, which must wait for its results; the cost is known after it."""
    spans: list[tuple[float, float]] = []
    cost = Cost()

    def listen(event: str, duration_secs: float, **_) -> None:
        if event.startswith("/jax/core/compile/"):
            spans.append((time.perf_counter() - duration_secs, time.perf_counter()))

    with contextlib.suppress(OSError):
        CLEAR.write_text("5")  # forget the peak so far (Linux)
    jax.monitoring.register_event_duration_secs_listener(listen)
    start = time.perf_counter()
    try:
        yield cost
    finally:
        end = time.perf_counter()
        jax.monitoring.unregister_event_duration_listener(listen)
    cost.compiling = _covered(spans, start, end)
    cost.seconds = end - start - cost.compiling
    if STATUS.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())):
        cost.peak_bytes = int(found[1]) * 1024


def _covered(spans: list[tuple[float, float]], start: float, end: float) -> float:
    """How much of the time from start to end lies in any of the spans, which may overlap."""
    total = 0.0
    for a, b in sorted(spans):
        a, b = max(a, start), min(b, end)
        total += max(b - a, 0.0)
        start = max(start, b)
    return total
