"""A comparison as Markdown, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxcircuits.comparison import Comparison

MANY = 40  # features beyond which single ones are left to the CSV
COSTS = (
    "Seconds for one feature at all keep levels, without compiling; seconds of compiling what no criterion before had "
    "compiled; the most memory that the process held meanwhile, with all that it held before."
)

MEAN = " Removed kernels leave their mean contribution over the images that score."


def of_comparison(found: Comparison) -> str:
    """Averages, who wins where, costs and, if they are few, single features."""
    m = found.manifest
    scored, judged = (m[which] for which in ("images", "test_images"))
    lines = [
        f"# {m['model']}: {', '.join(found.criteria)}",
        "",
        f"Pearson's r with the full network over the fraction of {m['granularity']}s kept: scored on "
        f"{scored['number']} images ({scored['source']}), judged on {judged['number']} ({judged['source']}). In "
        f"brackets the {m['level']:.0%} interval over images that judge ({m['resamples']} bootstrap resamples). In "
        "means a circuit that is constant counts as 0." + MEAN * (m["ablation"] == "mean"),
    ]
    for name in found.averages:
        lines += ["", f"## {_plain(found.heading(name))}", "", *_table(found, *found.shown(name))]
    lines += ["", "## Which wins where", "", *_lines(found.wins())]
    lines += ["", "## Cost of scoring", "", COSTS, "", *_lines(found.cost_rows())]
    every = [(layer, f) for layer in found.layers.values() for f in range(len(layer.labels))]
    if len(every) > len(found.layers) and len(every) <= MANY:
        for layer, f in every:
            lines += ["", f"## {_plain(layer.labels[f])}", "", *_table(found, layer.r[f], layer.ends[f])]
    return "\n".join(lines) + "\n"


def _table(found: Comparison, r: np.ndarray, ends: np.ndarray) -> list[str]:
    """A row for each keep, a column for each criterion; the highest r is bold."""

    def cell(c: int, k: int) -> str:
        if not np.isfinite(r[c, k]):
            return "constant"
        best = r[c, k] == np.nanmax(r[:, k]) and r[c, k] > 0
        text = f"{r[c, k]:.3f}"
        return f"{f'**{text}**' if best else text} [{ends[c, k, 0]:.3f}, {ends[c, k, 1]:.3f}]"

    criteria = range(len(found.criteria))
    cells = [[f"{keep:g}", *(cell(c, k) for c in criteria)] for k, keep in enumerate(found.keeps)]
    return _grid(["keep", *found.criteria], cells)


def _lines(rows: list[dict[str, Any]]) -> list[str]:
    head = [name.replace("_bytes", ", MB") for name in rows[0]]
    return _grid(head, [[_cell(*item) for item in row.items()] for row in rows])


def _grid(head: list[str], cells: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "peak_bytes":
        return f"{value / 1e6:.0f}"
    if name == "sure":
        return f"{value:.0%}"
    if isinstance(value, float):
        return f"{value:g}" if name == "keep" else f"{value:.3f}"
    return _plain(str(value))


def _plain(text: str) -> str:
    """Names of files as they are: `|` ends no cell."""
    return text.replace("|", "\\|")
