"""`python -m benchmarks.learned_page`: the tables of docs/learned.md from the JSON that it names.

They stand between two comments, the first of which names the file:

    <!-- learned: benchmarks/results/NAME.json -->
    <!-- /learned -->
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.learned import CRITERIA, LAYERS, correlation

ROOT = Path(__file__).parent.parent
PAGE = "docs/learned.md"
BLOCK = re.compile(r"<!-- learned: (?P<file>\S+) -->\n.*?<!-- /learned -->", re.DOTALL)
# What was aimed at: mean r on unseen photographs by keep, and by how much a feature may fall behind the best other.
GOALS, BEHIND = {0.05: 0.80, 0.01: 0.65}, 0.02

MORE = {
    "together": "learned, all folds together",
    "with_means": "learned, mean ablation",
    "seen": "learned, on its training crops",
}

Document = dict[str, Any]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)] + [""]


def means(document: Document, summary: list[Document]) -> list[str]:
    """r in the mean of all features: a row for each criterion."""
    rows = []
    for name in dict.fromkeys(row["criterion"] for row in summary):
        of = [row for row in summary if row["criterion"] == name]
        for which, label in (("unseen", name), *(MORE.items() if name == "learned" else ())):
            if which not in of[0]:
                continue
            cells = [f"{statistics.fmean(row[which][k] for row in of):.3f}" for k in range(len(document["keeps"]))]
            rows.append([label, *cells, f"{statistics.median(row['seconds'] for row in of):.1f}" * (which == "unseen")])
    header = ["mean r", *(f"keep {keep:g}" for keep in document["keeps"]), "CPU seconds a feature"]
    return table(header, [*rows, ["goal", *(f"{GOALS[k]:.2f}" if k in GOALS else "" for k in document["keeps"]), ""]])


def by_feature(document: Document, summary: list[Document]) -> tuple[list[str], int, int]:
    """The best of the others and learned, feature by feature; in how many cells learned is not behind, and of all."""
    rows, good, every = [], 0, 0
    for feature in dict.fromkeys(row["feature"] for row in summary):
        of = {row["criterion"]: row["unseen"] for row in summary if row["feature"] == feature}
        cells = [feature]
        for k in range(len(document["keeps"])):
            best = max(of[name][k] for name in of if name != "learned")
            behind = of["learned"][k] < best - BEHIND
            good, every = good + (not behind), every + 1
            cells.append(f"{best:.2f} / {'**' * behind}{of['learned'][k]:.2f}{'**' * behind}")
        rows.append(cells)
    return table(["best other / learned", *(f"keep {keep:g}" for keep in document["keeps"])], rows), good, every


def by_number(document: Document) -> list[str]:
    """r on the first fold over the number of training photographs."""
    of = [row for row in document["rows"] if row["criterion"] == "learned" and row["fold"] == 0]
    fewer = sorted({row["photographs"] for row in of} - {0})
    if not fewer:
        return []
    most = 12 - len(range(0, 12, document["folds"]))
    rows = []
    for photographs in (*fewer, 0):
        some = [row for row in of if row["photographs"] == photographs]
        cells = []
        for k in range(len(document["keeps"])):
            unseen = statistics.fmean(correlation([row["sums"][k]]) for row in some)
            cells.append(f"{unseen:.3f} / {statistics.fmean(row['seen'][k] or 0.0 for row in some):.3f}")
        rows.append([str(photographs or most), *cells])
    return table(["photographs", *(f"keep {keep:g}" for keep in document["keeps"])], rows)


def markdown(document: Document) -> str:
    """All that stands between the comments."""
    done = {row["feature"] for row in document["summary"] if row["criterion"] == "learned"}
    summary = [row for row in document["summary"] if row["feature"] in done]
    features, good, every = by_feature(document, summary)
    learned = [row for row in summary if row["criterion"] == "learned"]
    reached = []
    for keep, goal in GOALS.items():
        mean = statistics.fmean(row["unseen"][document["keeps"].index(keep)] for row in learned)
        reached.append(
            f"mean r at keep {keep:g}: {mean:.3f}, {'reached' if mean >= goal else 'not reached'} ({goal:.2f})"
        )
    verdict = f"{'; '.join(reached)}; not behind the best other by more than {BEHIND} in {good} of {every} cells."
    hardware, versions = document["hardware"], document["versions"]
    machine = f"{hardware['cpu']}, {hardware['cores']} cores; " + ", ".join(f"{n} {v}" for n, v in versions.items())
    numbers = by_number(document)
    if numbers:
        numbers = [
            "Unseen / training r of `learned` on the first fold, over the number of photographs trained on:",
            "",
            *numbers,
        ]
    folds = sorted({row["folds"] for row in summary})
    folds = f"{folds[0]}" if len(folds) == 1 else f"{folds[0]} to {folds[-1]}"
    extent = f"{len(done)} feature{'s' * (len(done) > 1)}, each on {folds} of {document['folds']} folds."
    layers = {name.partition(":")[0] for name in done}
    missing = [name for name in CRITERIA if name not in {row["criterion"] for row in summary}]
    whole = not missing and layers == set(LAYERS) and all(row["folds"] == document["folds"] for row in summary)
    # the goal is one for all layers and folds together
    absent = f", without {' and '.join(missing)}" * bool(missing)
    so_far = "" if whole else f"The study is not complete. Of {', '.join(sorted(layers))} alone{absent}: "
    each = ["By feature; bold where `learned` falls behind:", "", *features]
    lines = [extent, "", *means(document, summary), f"Goal: {so_far}{verdict}", "", *each]
    return "\n".join([*lines, *numbers, f"{machine}; features and training of seed {document['seed']}."])


def block(file: str, root: Path = ROOT) -> str:
    """The comments and what stands between them."""
    return f"<!-- learned: {file} -->\n\n{markdown(json.loads((root / file).read_text()))}\n\n<!-- /learned -->"


@click.command()
def main() -> None:
    """Write the tables of docs/learned.md."""
    path = ROOT / PAGE
    text = path.read_text()
    path.write_text(BLOCK.sub(lambda found: block(found["file"]), text))


if __name__ == "__main__":
    main()
