"""r over keep as a drawing that a template can write: places in points, of a logarithmic axis and a straight one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

WIDTH, HEIGHT = 420.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 14.0, 12.0, 34.0


def chart(points: Sequence[tuple[float, int, float | None]], own: int) -> dict[str, Any]:
    """Where everything stands.

    Args:
        points: (keep, kernels, r) by ascending keep; r None where the circuit is constant.
        own: the kernels of the circuit itself, whose point is marked.
    """
    low = min([keep for keep, *_ in points] + [0.5])
    floor = min([0.0] + [r for *_, r in points if r is not None])
    floor = math.floor(floor * 4) / 4

    def x(keep: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(keep / low) / math.log(1 / low)

    def y(r: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (r - floor) / (1 - floor))

    dots = []
    for keep, count, r in points:
        if r is not None:
            words = f"keep {keep:.3g}, {count:,} kernels: r = {r:.3f}"
            dots.append({"x": round(x(keep), 1), "y": round(y(r), 1), "own": count == own, "words": words})
    ticks = [keep for keep in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if keep >= low * 0.999]
    every = 1 if len(ticks) <= 8 else 2
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "bottom": HEIGHT - BOTTOM,
        "line": " ".join(f"{dot['x']},{dot['y']}" for dot in dots),
        "dots": dots,
        "across": [{"x": round(x(keep), 1), "words": f"{keep:g}"} for keep in ticks[::-1][::every]],
        "up": [{"y": round(y(k / 4), 1), "words": f"{k / 4:g}"} for k in range(round(floor * 4), 5)],
    }
