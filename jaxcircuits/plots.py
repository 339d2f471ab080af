"""Plots for people; matplotlib is imported when one is drawn."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxcircuits.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 7  # features that a legend names; more than that are grey lines behind their mean
# Okabe and Ito's colours, which the colour-blind can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
MARKERS = ("o", "s", "^")


def curves(
    path: Path, labels: Sequence[str], amounts: Sequence[float], r: np.ndarray, *, title: str = "",
    xlabel: str = "keep", what: str = "features",
) -> None:  # fmt: skip
    """Draw r (F, K) over how much is kept, a line for each feature and, from three on, their mean.

    Args:
        path: of a PNG.
        labels: of the features.
        amounts: the K keep levels or numbers of kernels, in any order.
        r: correlations; nan leaves a gap.
        title: over the plot.
        xlabel: what the amounts are.
        what: the labels name.
    """
    from matplotlib.figure import Figure

    order = np.argsort(amounts)
    x, r = np.asarray(amounts, float)[order], np.asarray(r, float)[:, order]
    named = len(labels) <= NAMED
    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    for i, (label, row) in enumerate(zip(labels, r, strict=True)):
        style = {"color": COLOURS[i], "marker": "o", "markersize": 4} if named else {"color": "0.8", "linewidth": 0.8}
        axes.plot(x, row, label=_plain(label) if named else None, zorder=2, **style)
    if len(labels) > 2:
        defined = np.isfinite(r)
        mean = np.where(defined, r, 0).sum(0) / np.where(defined.any(0), defined.sum(0), np.nan)
        name = "mean" if named else f"mean of {len(labels)} {what}"
        axes.plot(x, mean, color="black", linewidth=2, label=name, zorder=3)
    _dress(axes, x, float(np.nanmin(r, initial=0.0)), title)
    axes.set(xlabel=xlabel, ylabel="r with the full network")
    figure.legend(frameon=False, loc="outside lower center", ncols=3, fontsize="small")
    save(figure, path)


def comparison(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray]],
    criteria: Sequence[str],
    keeps: Sequence[float],
    *,
    title: str = "",
    xlabel: str = "keep",
) -> bytes:
    """Draw r over keep, a line with its interval for each criterion, in a panel for each layer: a PNG.

    Args:
        panels: {title: (r (C, K), its interval (C, K, 2))}; nan leaves a gap.
        criteria, keeps: C and K of them, the latter in any order.
        title: over the plot.
        xlabel: what keep is a fraction of.
    """
    from matplotlib.figure import Figure

    order = np.argsort(keeps)
    x = np.asarray(keeps, float)[order]
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    width = 6.4 if columns == 1 else 4.4 * columns
    figure = Figure(figsize=(width, 3.4 * rows + 0.9), dpi=150, layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    lowest = min(0.0, *(float(np.nanmin(ends, initial=0.0)) for _, ends in panels.values()))
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for panel, (axes, (name, (r, ends))) in enumerate(zip(grid.flat, panels.items(), strict=False)):
        for c, criterion in enumerate(criteria):
            colour, marker = COLOURS[c % len(COLOURS)], MARKERS[c // len(COLOURS) % len(MARKERS)]
            line = {"color": colour, "marker": marker, "markersize": 3.5, "linewidth": 1.3}
            axes.plot(x, r[c, order], label=None if panel else _plain(criterion), zorder=2, **line)
            there = np.isfinite(ends[c, order]).all(-1)
            if there.any():  # nothing else but nan would leave axes without limits
                axes.fill_between(x, *ends[c, order].T, where=there, color=colour, alpha=0.13, linewidth=0)
        _dress(axes, x, lowest, name)
        lowest_of_column, first_of_row = panel + columns >= len(panels), panel % columns == 0
        axes.set_xlabel(xlabel if lowest_of_column else "", fontsize="small")
        axes.set_ylabel("r with the full network" if first_of_row else "", fontsize="small")
    figure.suptitle(_plain(title), fontsize="medium")
    figure.legend(frameon=False, loc="outside lower center", ncols=min(len(criteria), 7), fontsize="small")
    return _png(figure)


def matrix(path: Path, values: np.ndarray, labels: Sequence[str], *, title: str = "") -> None:
    """Draw a matrix of overlaps (F, F) of the features with these labels, those of one layer side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 6.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    off = values[~np.eye(len(values), dtype=bool)]
    most = float(np.nanmax(off, initial=0)) or 1.0  # the diagonal, all ones, would hide the rest
    picture = axes.imshow(values, vmin=0, vmax=most, cmap="viridis", interpolation="nearest")
    figure.colorbar(picture, label="intersection over union")
    layers = [label.partition(":")[0] for label in labels]
    first = [i for i, layer in enumerate(layers) if not i or layer != layers[i - 1]]
    ends = [*first[1:], len(layers)]
    axes.set_xticks([(a + b - 1) / 2 for a, b in zip(first, ends, strict=True)], [_plain(layers[i]) for i in first])
    axes.set_yticks(axes.get_xticks(), [_plain(layers[i]) for i in first])
    axes.tick_params(length=0, labelsize="small")
    for edge in first[1:]:
        axes.axhline(edge - 0.5, color="white", linewidth=0.6)
        axes.axvline(edge - 0.5, color="white", linewidth=0.6)
    axes.set_title(_plain(title), fontsize="medium")
    save(figure, path)


def usage(path: Path, users: np.ndarray, *, title: str = "") -> None:
    """Draw how many kernels have at least so many users, from the users of each kernel."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    counts = np.arange(int(users.max()) + 2)
    axes.step(counts, [(users >= count).mean() for count in counts], where="mid", color=COLOURS[0])
    axes.set(xlabel="features that use a kernel, at least", ylabel="share of the kernels", ylim=(0, 1.03))
    axes.set_title(_plain(title), fontsize="medium")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def _dress(axes, x: np.ndarray, lowest: float, title: str) -> None:
    """Axes of r over how much is kept, the amounts x in ascending order."""
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.set(xscale="log")
    axes.set_title(_plain(title), fontsize="medium")
    axes.set_xticks(x, [f"{value:g}" for value in x], fontsize="small")
    _thin(axes, x)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(x[0] / 1.12, x[-1] * 1.12)  # lines that end at 1 end inside the frame, and one level has a width
    axes.set_ylim(max(lowest - 0.05, -1.03), 1.03)
    if lowest < 0:
        axes.axhline(0, color="0.6", linewidth=0.8, zorder=1)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, whole or not at all."""
    write_whole(path, _png(figure))


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _thin(axes, x: np.ndarray, apart: float = 0.075) -> None:
    """Blank the tick labels that would overlap, from right to left; `apart` is a share of the axis."""
    span, last = np.log(x[-1] / x[0]) or 1.0, np.inf
    for place, label in zip(x[::-1], axes.get_xticklabels()[::-1], strict=True):
        at = np.log(place / x[0]) / span
        if last - at < apart:
            label.set_visible(False)
        else:
            last = at


def _plain(text: str) -> str:
    """Names of files as they are: `$` begins no formula."""
    return text.replace("$", r"\$")
