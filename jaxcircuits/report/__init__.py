"""One page about circuits: diagram, r over keep, patches, counts by layer and manifest, several side by side."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcircuits.circuit import Circuit, feature_label, finite
from jaxcircuits.diagram import check_format, diagram
from jaxcircuits.diagram.graph import MOST, ranking
from jaxcircuits.diagram.page import PACKAGE as DIAGRAM
from jaxcircuits.diagram.page import SCRIPTS, STYLES, summary
from jaxcircuits.diagram.pictures import MADE, feature_strip
from jaxcircuits.faithfulness import evaluate
from jaxcircuits.masks import keep_counts
from jaxcircuits.model import Model
from jaxcircuits.pages import data_uri, render, table
from jaxcircuits.paths import effective_kernels, relevant_kernels
from jaxcircuits.report.chart import chart

PACKAGE = "jaxcircuits.report"
KEEPS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
PATCHES, SIZE = 8, 96


def report(
    model: Model,
    circuits: Sequence[Circuit],
    images=None,
    *,
    title: str = "",
    most: int = MOST,
    pictures: str = "patches",
    made: int = MADE,
) -> str:
    """An HTML page about circuits of one model.

    Args:
        model: whose circuits they are.
        circuits: shown side by side; with scores, if r over keep is to be drawn.
        images: as for `score`, for r and patches; None leaves both out.
        title: of the page.
        most: kernels that a diagram draws at the most.
        pictures, made: as for `diagram`, "patches", "features" or "none"; "features" also makes two pictures of the
            circuit's feature, in the full network and in the circuit.

    Raises:
        InputError: a circuit is of another network, unknown pictures, or `most` or `made` is below 1.
    """
    check_format("html")  # before anything is drawn
    options = {"most": most, "pictures": pictures, "made": made}
    return page([entry(model, circuit, images, **options) for circuit in circuits], title=title)


def page(entries: Sequence[dict[str, Any]], *, title: str = "") -> str:
    """The page of what `entry` returned, of one model or of several."""
    names = [entry["label"] for entry in entries]
    return render(
        "report.html",
        package=PACKAGE,
        title=title or ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
        styles=(*STYLES, "report.css"),
        scripts=(*SCRIPTS, "report.js"),
        rooms=(DIAGRAM,),
        data=[entry["diagram"] for entry in entries],
        entries=entries,
    )


def entry(
    model: Model, circuit: Circuit, images=None, *, most: int = MOST, pictures: str = "patches", made: int = MADE
) -> dict[str, Any]:
    """What the page says of one circuit."""
    drawn = diagram(model, circuit, images, most=most, pictures=pictures, made=made)  # says first what is wrong
    manifest, features = circuit.manifest, circuit.features
    masks = {name: mask[None] for name, mask in circuit.masks.items()}
    relevant = relevant_kernels(model, features, layers=tuple(masks))
    effective = effective_kernels(model, features, masks)
    layers = []
    for name, mask in circuit.masks.items():
        on_path = np.asarray(effective[name][0])
        layers.append([name, int(relevant[name].sum()), int(mask.sum()), int(on_path.sum()), int(on_path.any(0).sum())])
    return {
        "label": f"{manifest['model']} {feature_label(manifest)}",
        "summary": summary(circuit),
        "manifest": table(manifest),
        "layers": layers,
        "total": [sum(row[k] for row in layers) for k in range(1, 5)],
        "numbers": {name: manifest[name] for name in ("criterion", "keep", "kernels", "relevant", "kept", "effective")},
        "r": manifest["correlation"],
        "curve": None if images is None else _curve(model, circuit, images, sum(row[1] for row in layers)),
        "drivers": _drivers(model, circuit, images, pictures),
        "diagram": drawn.contents,
    }


def _drivers(model: Model, circuit: Circuit, images, kind: str) -> list[tuple[str, str]]:
    """What drives the feature most, in the full network and in the circuit: (words, address of a picture) of each."""
    if model.channels != 3 or kind == "none" or (images is None and kind == "patches"):
        return []
    full = Circuit({}, circuit.manifest, direction=circuit.direction)
    rows = [("in the full network", full), ("in the circuit", circuit)]
    found = []
    for words, one in rows:
        strip, made = feature_strip(model, one, images, kind=kind, count=PATCHES, size=SIZE)
        if strip is not None:
            what = " (the first picture is made by gradient ascent)" if made else ""
            found.append((words + what, data_uri(strip, kind="jpeg")))
    return found


def _curve(model: Model, circuit: Circuit, images, relevant: int) -> dict[str, Any]:
    """r over keep, by the circuit's scores; without scores only its own.

    Where means stand in for removed kernels, its own point has the circuit's; those of others are over these images.
    """
    best = ranking(circuit)
    kept = sum(int(mask.sum()) for mask in circuit.masks.values())
    ends, number = np.arange(1, len(best.o) + 1), relevant
    if best.scored and circuit.manifest.get("granularity") == "filter":  # all kernels of a filter have its score
        filters = np.stack([best.layers, best.o])
        ends = np.append(np.flatnonzero((filters[:, 1:] != filters[:, :-1]).any(0)) + 1, len(best.o))
        number = len(ends)
    amounts = [keep_counts(np.array([number]), keep, None)[0] for keep in KEEPS] if best.scored else []
    others = {int(ends[min(amount, len(ends)) - 1]) for amount in amounts}
    counts = sorted({kept} | others)
    masks = [best.masks(circuit, count) if count != kept else circuit.masks for count in counts]
    masks = [{name: m[None] for name, m in mask.items()} for mask in masks]
    offsets = None
    if circuit.offsets is not None:
        own = {name: a[None] for name, a in circuit.offsets.items()}
        offsets = [own if count == kept else None for count in counts]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*so that r is not defined")  # where it is not, no point is drawn
        judged = evaluate(model, images, circuit.features, masks, ablation=circuit.ablation, offsets=offsets)
    r = [finite(value) for value in np.asarray(judged.correlation()).reshape(-1)]
    fractions = [(int(np.searchsorted(ends, count)) + 1) / number for count in counts]
    points = list(zip(fractions, counts, r, strict=True))
    return {"points": points, "chart": chart(points, kept), "scored": best.scored}
