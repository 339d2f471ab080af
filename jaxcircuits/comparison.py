"""What `compare` has found, and its tables: CSV, JSON, Markdown."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcircuits import markdown, plots
from jaxcircuits.circuit import finite
from jaxcircuits.costs import Cost
from jaxcircuits.errors import InputError
from jaxcircuits.files import check_writable, write_all
from jaxcircuits.measures import interval

ENDINGS = (".csv", ".md", ".png", ".json")
OVERALL = "mean of the layers"


class Average(NamedTuple):
    """Means of r over features, for each of C criteria and K keep levels.

    Attributes:
        r: the mean (C, K).
        ends: of its interval (C, K, 2).
        best: share of the resamples in which the criterion has the highest mean and that is over 0 (C, K); ties are
            shared out.
    """

    r: np.ndarray
    ends: np.ndarray
    best: np.ndarray


def average(means: np.ndarray, level: float) -> Average:
    """Of means (C, K, B) in B samples, the first of which is all images."""
    resampled = means[..., 1:]
    highest = (resampled == np.fmax.reduce(resampled, axis=0)) & (resampled > 0)
    share = highest / np.maximum(highest.sum(0), 1)
    return Average(means[..., 0], interval(resampled, level), share.mean(-1))


class LayerComparison(NamedTuple):
    """The F features of one layer.

    Attributes:
        labels: the features.
        r: (F, C, K), nan where the circuit or the feature is constant.
        ends: of its interval (F, C, K, 2).
        average: over the features.
        costs: {criterion: what scoring all F features at all keep levels has cost}.
        constant: how many of the circuits are, though their feature is not.
    """

    labels: tuple[str, ...]
    r: np.ndarray
    ends: np.ndarray
    average: Average
    costs: Mapping[str, Cost]
    constant: int = 0


@dataclass(frozen=True, eq=False)
class Comparison:
    """r of circuits by C criteria at K keep levels.

    Attributes:
        criteria, keeps: those compared.
        layers: {layer: what was found of its features}.
        overall: mean over the layers' means, if there are several.
        manifest: the question: model, weights, images, test images, features, criteria, options, versions.
    """

    criteria: tuple[str, ...]
    keeps: tuple[float, ...]
    layers: Mapping[str, LayerComparison]
    overall: Average | None
    manifest: Mapping[str, Any]

    @property
    def averages(self) -> dict[str, Average]:
        """By layer, and over all of them."""
        found = {name: layer.average for name, layer in self.layers.items()}
        return found if self.overall is None else {**found, OVERALL: self.overall}

    @property
    def constant(self) -> int:
        """How many circuits have no r, though their feature is not constant."""
        return sum(layer.constant for layer in self.layers.values())

    def heading(self, name: str) -> str:
        """What an average is of: `features.10, mean of 64`, or the one feature."""
        labels = self.layers[name].labels if name in self.layers else ()
        return labels[0] if len(labels) == 1 else f"{name}, mean of {len(labels)}" if labels else name

    def shown(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """r (C, K) and its interval (C, K, 2): an average or, of a layer with one feature, that one's own."""
        if name in self.layers and len(self.layers[name].labels) == 1:
            return self.layers[name].r[0], self.layers[name].ends[0]
        return self.averages[name].r, self.averages[name].ends

    def rows(self) -> list[dict[str, Any]]:
        """One for each feature, criterion and keep; None where r is not defined.

        `seconds` and `compiling` are a feature's share of its layer's, for all keep levels together.
        """
        rows = []
        for name, layer in self.layers.items():
            for f, c, k in np.ndindex(layer.r.shape):
                low, high = layer.ends[f, c, k].tolist()
                cost = layer.costs[self.criteria[c]]
                rows.append(
                    {
                        "feature": layer.labels[f],
                        "layer": name,
                        "criterion": self.criteria[c],
                        "keep": self.keeps[k],
                        "r": finite(float(layer.r[f, c, k])),
                        "low": finite(low),
                        "high": finite(high),
                        "seconds": cost.seconds / len(layer.labels),
                        "compiling": cost.compiling / len(layer.labels),
                        "peak_bytes": cost.peak_bytes,
                    }
                )
        return rows

    def average_rows(self) -> list[dict[str, Any]]:
        """One for each layer, criterion and keep."""
        return [
            {
                "layer": name,
                "criterion": self.criteria[c],
                "keep": self.keeps[k],
                "r": finite(float(found.r[c, k])),
                "low": finite(float(found.ends[c, k, 0])),
                "high": finite(float(found.ends[c, k, 1])),
                "best": float(found.best[c, k]),
            }
            for name, found in self.averages.items()
            for c, k in np.ndindex(found.r.shape)
        ]

    def wins(self) -> list[dict[str, Any]]:
        """One for each layer and keep: the criterion of highest mean r, its lead over the second, and `sure`, the share
        of the resamples in which it is the best. None wins where no mean is over 0, the r of no circuit at all."""
        rows = []
        for name, found in self.averages.items():
            for k, keep in enumerate(self.keeps):
                r = [-np.inf if np.isnan(value) else float(value) for value in found.r[:, k]]
                first, *others = np.argsort(np.negative(r), kind="stable").tolist()
                second = others[0] if others and np.isfinite(r[others[0]]) else None
                won = r[first] > 0
                rows.append(
                    {
                        "layer": name,
                        "keep": keep,
                        "criterion": self.criteria[first] if won else None,
                        "r": finite(r[first]),
                        "second": None if second is None else self.criteria[second],
                        "lead": None if second is None else r[first] - r[second],
                        "sure": float(found.best[first, k]),
                    }
                )
        return rows

    def cost_rows(self) -> list[dict[str, Any]]:
        """One for each layer and criterion; seconds are for one feature at all keep levels."""
        return [
            {
                "layer": name,
                "criterion": criterion,
                "seconds": cost.seconds / len(layer.labels),
                "compiling": cost.compiling,
                "peak_bytes": cost.peak_bytes,
            }
            for name, layer in self.layers.items()
            for criterion, cost in layer.costs.items()
        ]

    def document(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        tables = {"averages": self.average_rows(), "wins": self.wins(), "costs": self.cost_rows(), "rows": self.rows()}
        return {"manifest": dict(self.manifest), "constant": self.constant, **tables}

    def save(self, stem: str | os.PathLike[str], *, force: bool = False) -> list[Path]:
        """Write STEM.csv, STEM.md, STEM.png and STEM.json, all of them or none.

        Raises:
            InputError: they exist and answer another question and `force` is not set, or they cannot be written.
        """
        paths = free_paths(stem, self.manifest, force=force)
        what = f"{self.manifest['granularity']}s"
        options = {"title": self.title, "xlabel": f"{what} kept (fraction of the relevant ones)"}
        panels = {self.heading(name): self.shown(name) for name in self.averages}
        image = plots.comparison(panels, self.criteria, self.keeps, **options)
        contents = (self.csv().encode(), self.markdown().encode(), image, self.json().encode())
        write_all(dict(zip(paths, contents, strict=True)))
        return paths

    @property
    def title(self) -> str:
        """`alexnet, 2 features, judged on 24 images`."""
        number = sum(len(layer.labels) for layer in self.layers.values())
        features = f"{number} features" if number > 1 else next(iter(self.layers.values())).labels[0]
        return f"{self.manifest['model']}, {features}, judged on {self.manifest['test_images']['number']} images"

    def json(self) -> str:
        return json.dumps(self.document(), indent=1, allow_nan=False) + "\n"

    def csv(self) -> str:
        """`rows` as a table; nothing stands where r is not defined."""
        rows, text = self.rows(), io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def markdown(self) -> str:
        """Tables for people."""
        return markdown.of_comparison(self)


def free_paths(stem: str | os.PathLike[str], manifest: Mapping[str, Any], *, force: bool) -> list[Path]:
    """The files of a comparison, or an InputError if they cannot be written or hold something else."""
    paths = [Path(f"{os.fspath(stem)}{ending}") for ending in ENDINGS]
    for path in paths:
        check_writable(path)
    there = [path for path in paths if os.path.lexists(path)]
    if force or not there:
        return paths
    try:
        old = dict(json.loads(paths[-1].read_text())["manifest"])
        differing = sorted(k for k in {*old, *manifest} - {"versions"} if old.get(k) != manifest.get(k))
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        raise InputError(
            f"{str(there[0])!r} exists and is of no comparison; --force (force=True) overwrites it"
        ) from None
    if differing:
        raise InputError(
            f"{str(paths[-1])!r} holds a comparison made otherwise (not the same: {', '.join(differing)}); "
            "--force (force=True) overwrites it"
        )
    return paths
