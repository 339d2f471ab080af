"""Plots of the figures; matplotlib is imported when one is drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcircuits.plots import COLOURS, save

Records = Sequence[dict[str, Any]]


def ratios(path: Path, records: Records) -> None:
    """How many times as long the PyTorch baselines take, a pair of bars for each case."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = _figure(0.9 + 0.42 * len(records))
    height = 0.38
    for number, name in enumerate(("reference", "strong")):
        there = [(row, record["ratio"][name]) for row, record in enumerate(records) if name in record["ratio"]]
        places = [row + (number - 0.5) * height for row, _ in there]
        values = [value for _, value in there]
        # from 1, where both are as fast, to the right or to the left
        bars = axes.barh(places, [value - 1 for value in values], height, left=1, color=COLOURS[number], label=name)
        axes.bar_label(bars, [f"{value:.1f}" for value in values], padding=3, fontsize="small")
    axes.axvline(1, color="0.3", linewidth=0.8)
    axes.set_yticks(range(len(records)), [record["case"] for record in records], fontsize="small")
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="PyTorch's time / jaxcircuits' time")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12)
    axes.grid(axis="x", alpha=0.25)
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize="small")
    save(figure, path)


def scaling(path: Path, records: Records) -> None:
    """Time of one image and feature, and memory without the scores that are the result, over the number of features: a
    line for each number of images."""
    kinds = list(dict.fromkeys(record["what"] for record in records))
    figure, axes = _figure(2.4 * len(kinds) + 0.6, rows=len(kinds), columns=2)
    for row, what in zip(axes, kinds, strict=True):
        counts = sorted({record["images"] for record in records if record["what"] == what})
        for colour, images in zip(COLOURS, counts, strict=False):
            line = sorted((r for r in records if (r["what"], r["images"]) == (what, images)), key=_features)
            x = [_features(record) for record in line]
            style = {"color": colour, "marker": "o", "markersize": 4}
            label = f"N = {images}" if what == kinds[0] else None  # once in the legend
            row[0].plot(x, [record["milliseconds"]["jaxcircuits"] for record in line], label=label, **style)
            beside = [record["peak_megabytes"]["jaxcircuits"] - record["result_megabytes"] for record in line]
            row[1].plot(x, beside, **style)
        row[0].set(title=what, yscale="log", ylabel="ms per image and feature")
        row[1].set(title=what, ylabel="MB beside the scores", ylim=(0, None))
        for one in row:
            one.set_xscale("log", base=2)
            ticks = sorted({_features(record) for record in records})
            one.set_xticks(ticks, [str(tick) for tick in ticks])
            one.set_xlabel("features")
            one.grid(alpha=0.25)
    figure.legend(frameon=False, loc="outside lower center", ncols=len(COLOURS), fontsize="small")
    save(figure, path)


def _features(record: dict[str, Any]) -> int:
    return record["features"]


def _figure(height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, max(2.2, height)), dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes if columns > 1 else axes[0, 0]
