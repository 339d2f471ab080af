"""Plots for people; matplotlib is imported when one is drawn."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxcircuits.circuit import write_whole


def curves(path: Path, labels: Sequence[str], keeps: Sequence[float], r: np.ndarray, *, title: str = "") -> None:
    """Draw r (F, K) over keep, a line for each feature and, from three on, their mean.

    Args:
        path: of a PNG.
        labels: of the features.
        keeps: the K keep levels, in any order.
        r: correlations; nan leaves a gap.
        title: over the plot.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    order = np.argsort(keeps)
    x, r = np.asarray(keeps)[order], np.asarray(r)[:, order]
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.subplots()
    many = len(labels) > 10
    for label, row in zip(labels, r, strict=True):
        style: dict = {"color": "0.75", "linewidth": 0.8} if many else {"marker": "o", "label": label}
        axes.plot(x, row, **style)
    if len(labels) > 2:
        defined = np.isfinite(r)
        mean = np.where(defined, r, 0).sum(0) / np.maximum(defined.sum(0), 1)
        axes.plot(x, mean, color="black", linewidth=2, label=f"mean of {len(labels)} features")
    axes.set(xscale="log", xlabel="kernels kept (fraction of the relevant ones)", ylabel="Pearson r", title=title)
    axes.set_xticks(x)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(min(0.0, float(np.nanmin(r, initial=0.0))) - 0.02, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    write_whole(path, png.getvalue())
