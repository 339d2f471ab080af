"""`python -m benchmarks.learned`: are learned circuits better than the paper's, on photographs that they have not seen?

The bundled photographs are dealt into folds. For every fold each criterion finds circuits from the photographs of all
other folds, and they are run on those of this fold: removed kernels contribute nothing and, beside it, their mean on
the other folds. Features are drawn by a seed. A second part trains on fewer photographs. Every result is written as it
comes; the same command goes on where it was interrupted.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

import jaxcircuits as jc
from benchmarks.measure import machine
from jaxcircuits.criteria import STEPS
from jaxcircuits.data import batches
from jaxcircuits.measures import Moments

LAYERS = ("features.6", "features.8", "features.10")
KEEPS = (0.2, 0.1, 0.05, 0.01)
CRITERIA = ("snip", "actgrad", "force", "learned")
CROPS = 4  # of each photograph stand side by side in `photos`

Row = dict[str, Any]


def drawn(model: jc.Model, seed: int, number: int) -> dict[str, list[int]]:
    """So many channels of each layer."""
    rng, layers = np.random.default_rng(seed), model.network().layers
    return {name: rng.choice(layers[name].outputs, number, replace=False).tolist() for name in LAYERS}


def sums(moments: Moments, f: int) -> list[list[float]]:
    """Of feature f's K circuits: number, means of x and y, sums of (x - mean)^2, (y - mean)^2 and their product."""
    n, y = moments.count[f].astype(float), moments.mean_y[f].astype(float)
    rows = []
    for k in range(moments.shape[1]):
        x = moments.mean_x[f, k].astype(float)
        mean_x, mean_y = np.average(x, weights=n), np.average(y, weights=n)
        dx, dy = x - mean_x, y - mean_y
        about = [moments.xx[f, k] + n * dx * dx, moments.yy[f] + n * dy * dy, moments.xy[f, k] + n * dx * dy]
        rows.append([float(v) for v in (n.sum(), mean_x, mean_y, *(a.sum() for a in about))])
    return rows


def correlation(parts: Sequence[Sequence[float]]) -> float:
    """Pearson r over everything of which these are `sums`, one row for each part; 0 where the circuit is constant."""
    n, x, y, xx, yy, xy = np.array(parts, float).T
    dx, dy = x - np.average(x, weights=n), y - np.average(y, weights=n)
    whole = np.sqrt((xx + n * dx * dx).sum() * (yy + n * dy * dy).sum())
    return float((xy + n * dx * dy).sum() / whole) if whole else 0.0


def measured(
    model: jc.Model, train, test, layer: str, channels: Sequence[int], criterion: str, seed: int, steps: int
) -> list[Row]:
    """Circuits from `train` of each channel, in sums over `test`; and how long one channel's took to find."""
    features = jc.Features(layer, channels=channels)
    options: Any = {"seed": seed, "steps": steps} if criterion == "learned" else {}
    start = time.process_time()  # other programs may have the machine too
    found = list(jc.extract(model, train, features, criterion=criterion, keep=KEEPS, **options))
    seconds = (time.process_time() - start) / len(channels)
    of_keep = [found[k :: len(KEEPS)] for k in range(len(KEEPS))]
    masks = [{name: np.stack([c.masks[name] for c in row]) for name in row[0].masks} for row in of_keep]
    means: Any = {"ablation": "mean", "offsets": [jc.mean_offsets(model, train, mask) for mask in masks]}
    moments, with_means = (jc.evaluate(model, test, features, masks, **how).moments for how in ({}, means))
    return [
        {
            "feature": f"{layer}:{channel}",
            "seconds": seconds,
            "seen": [row[f].manifest["correlation"] for row in of_keep],
            "sums": sums(moments, f),
            "sums_with_means": sums(with_means, f),
        }
        for f, channel in enumerate(channels)
    ]


def summary(rows: Sequence[Row]) -> list[Row]:
    """r of every feature and criterion at each keep, of the folds that all of a feature's criteria have done.

    `unseen` is the mean of the folds' r on photographs that have not been trained on, `together` is r of all of them,
    each in the circuit that has not seen it; `with_means` is `unseen` by mean ablation, `seen` on the training crops.
    """
    whole, found = [row for row in rows if not row["photographs"]], []
    for feature in dict.fromkeys(row["feature"] for row in whole):
        mine = [row for row in whole if row["feature"] == feature]
        criteria = dict.fromkeys(row["criterion"] for row in mine)
        folds = set.intersection(*({row["fold"] for row in mine if row["criterion"] == name} for name in criteria))
        for name in criteria:
            of = [row for row in mine if row["criterion"] == name and row["fold"] in folds]
            if of:
                levels = range(len(of[0]["seen"]))
                unseen = [statistics.fmean(correlation([row["sums"][k]]) for row in of) for k in levels]
                together = [correlation([row["sums"][k] for row in of]) for k in levels]
                seen = [statistics.fmean(row["seen"][k] or 0.0 for row in of) for k in levels]
                seconds = statistics.median(row["seconds"] for row in of)
                one = {"feature": feature, "criterion": name, "folds": len(of), "seconds": seconds}
                if all("sums_with_means" in row for row in of):
                    means = [[correlation([row["sums_with_means"][k]]) for row in of] for k in levels]
                    one["with_means"] = [statistics.fmean(each) for each in means]
                found.append(one | {"unseen": unseen, "together": together, "seen": seen})
    return found


def save(out: Path, document: dict[str, Any]) -> None:
    out.write_text(json.dumps(document | {"summary": summary(document["rows"])}) + "\n")


@click.command()
@click.option("--seed", default=0, show_default=True, help="Draws the features, and is that of training.")
@click.option("--number", default=4, show_default=True, help="Features of each layer.")
@click.option("--folds", default=4, show_default=True, help="The twelve photographs are dealt into as many.")
@click.option("--criteria", default=",".join(CRITERIA), show_default=True, help="In this order.")
@click.option("--steps", default=STEPS["learned"], show_default=True, help="Of learned.")
@click.option("--fewer", default="", help="Also train on so many photographs, e.g. 3,6: learned, the first fold.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="JSON, to go on with.")
def main(seed: int, number: int, folds: int, criteria: str, steps: int, fewer: str, out: Path) -> None:
    """Judge circuits of drawn features on photographs that share nothing with those of training."""
    model = jc.load("alexnet", weights="lpips")
    images = np.concatenate([np.asarray(block[:real]) for block, real in batches(jc.read_images("photos", model), 16)])
    photograph = np.arange(len(images)) // CROPS
    asked = {"kind": "learned", "seed": seed, "number": number, "folds": folds, "keeps": list(KEEPS), "steps": steps}
    document: dict[str, Any] = {**asked, **machine(), "rows": []}
    if out.is_file():
        before = json.loads(out.read_text())
        if other := [name for name in asked if before.get(name) != asked[name]]:
            raise click.UsageError(f"{out} holds results of another {other[0]}; give another --out")
        document["rows"] = before["rows"]
    done = {
        (row["criterion"], row["feature"].partition(":")[0], row["fold"], row["photographs"])
        for row in document["rows"]
    }
    work = [(c, fold, layer, 0) for fold in range(folds) for layer in LAYERS for c in criteria.split(",")]
    work += [("learned", 0, layer, int(n)) for n in fewer.split(",") if n for layer in LAYERS]
    for criterion, fold, layer, photographs in work:
        if (criterion, layer, fold, photographs) in done:
            continue
        others = [p for p in dict.fromkeys(photograph.tolist()) if p % folds != fold]
        others = np.random.default_rng(seed).permutation(others)[: photographs or len(others)]
        train, test = images[np.isin(photograph, others)], images[photograph % folds == fold]
        for row in measured(model, train, test, layer, drawn(model, seed, number)[layer], criterion, seed, steps):
            document["rows"].append({"criterion": criterion, "fold": fold, "photographs": photographs} | row)
            r = " ".join(f"{correlation([part]):.3f}" for part in row["sums"])
            many = photographs or len(others)
            click.echo(f"{criterion} {row['feature']} fold {fold}, {many} photographs: {r}, {row['seconds']:.1f} s")
        save(out, document)
    save(out, document)


if __name__ == "__main__":
    main()
