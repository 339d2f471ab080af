"""Circuits: `extract` makes them, `evaluate` judges them, `export` takes them to PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from jaxcircuits import training
from jaxcircuits.circuit import Circuit, feature_label, feature_stem, finite, method_stem, stem
from jaxcircuits.cli import common
from jaxcircuits.cli.common import JSON, OUT, OVERWRITE, QUIET, RESIZE, SEED, STRICT, Command, numbers, options
from jaxcircuits.cli.recorded import network_of, pictures_of
from jaxcircuits.cli.screen import Screen
from jaxcircuits.criteria import IN_ROUNDS, STEPS, TRAINED
from jaxcircuits.data import Images, read_images
from jaxcircuits.errors import InputError
from jaxcircuits.export import ENDINGS, USAGE, export_circuit, free_paths
from jaxcircuits.faithfulness import evaluate as judge
from jaxcircuits.files import check_writable
from jaxcircuits.granularity import masks_at
from jaxcircuits.jobs import extract as extract_circuits
from jaxcircuits.jobs import plan
from jaxcircuits.loading import load
from jaxcircuits.model import Model
from jaxcircuits.nulls import against_nulls
from jaxcircuits.options import Options
from jaxcircuits.paths import relevant_kernels
from jaxcircuits.plots import curves
from jaxcircuits.pytorch.files import USAGE as COMPACT_USAGE
from jaxcircuits.pytorch.files import export_compact, free_compact_paths
from jaxcircuits.spelling import parse

KEEPS = "0.5,0.2,0.1,0.05,0.01"
LONG = 40  # lines of a table, beyond which it has one line for each feature


@click.command(cls=Command)
@click.argument("model")
@click.argument("features", nargs=-1, required=True, metavar="FEATURE...")
@options(common.WEIGHTS, common.TRANSFORM, common.IMAGES, RESIZE, STRICT)
@options(common.CRITERION, common.ABSOLUTE, common.OBJECTIVE, common.ABLATION)
@options(common.keep_option(KEEPS), common.KERNELS, common.GRANULARITY, common.STEPS)
@click.option("--scores", is_flag=True, help="Store the scores in the circuit files too.")
@options(common.PRECISION, common.CHUNK, common.BATCH)
@click.option("--plot", type=click.Path(path_type=Path), help="PNG of r over keep.  [default: beside the circuits]")
@options(OUT, OVERWRITE, SEED, JSON, QUIET)
def extract(
    model: str, features: tuple[str, ...], weights, transform_input, images, resize, strict, criterion, absolute,
    objective, ablation, keep, kernels, granularity, steps, scores, precision, chunk, batch, plot: Path | None,
    out: Path, force, seed, as_json, quiet,
) -> None:  # fmt: skip
    """Find the circuits of MODEL's FEATUREs and write a file for each.

    A FEATURE is LAYER:CHANNEL, LAYER:A-B, LAYER:* or LAYER:FILE.npy (directions), then possibly a position: @H,W,
    @middle or @argmax. `jaxcircuits info MODEL` lists the layers.
    """
    screen = Screen(quiet, as_json)
    amounts = {} if kernels is None else {"kernels": numbers("kernels", kernels, int)}
    if keep is not None or kernels is None:
        amounts["keep"] = numbers("keep", KEEPS if keep is None else keep, float)
    levels = next(iter(amounts.values()))
    if plot and len(set(levels)) < 2:
        raise InputError("--plot draws r over several amounts; give --keep or --kernels more than one")
    if plot and plot.suffix.lower() != ".png":
        raise InputError(f"--plot is {str(plot)!r}; expected a file that ends in .png")
    network = common.network_given(model, weights, transform_input, seed)
    parsed = [parse(text, network.layers, objective=objective) for text in features]
    pictures = common.images_given(images, network, resize, strict)
    asked: Any = {"ablation": ablation, **amounts}
    how: Any = {"criterion": criterion, "absolute": absolute, "granularity": granularity, "steps": steps}
    how |= {"seed": seed, "precision": precision, "chunk": chunk, "batch": batch}

    # whatever could go wrong when files are written goes wrong now, and not after hours
    jobs = plan(network, pictures, parsed, Options(**how), **asked)
    manifests = [manifest for job in jobs for row in job.manifests for manifest in row]
    paths = [out / model / f"{stem(manifest)}.safetensors" for manifest in manifests]
    several = len(set(levels)) > 1
    plot = plot or out / model / f"{_plot_stem(manifests, len(levels))}.png" if several else None
    common.free_places(paths, manifests, force=force, otherwise="extract them one by one")
    if plot:
        check_writable(plot)

    screen.say(common.heading(model, weights, len(pictures), images) + "\n")
    rows, each = [], len(pictures) * (1 + len(levels))
    if criterion in IN_ROUNDS:
        each += len(pictures) * len(levels) * (steps or STEPS[criterion])
    if criterion in TRAINED:
        each += training.length(amounts.get("keep", [0.05] * len(levels)), steps or STEPS[criterion])
    total = len(manifests) // len(levels) * each
    with screen.progress("scoring and judging", total, of="features", each=each) as progress:
        found = extract_circuits(network, pictures, parsed, with_scores=scores, progress=progress, **asked, **how)
        for path, circuit in zip(paths, found, strict=True):
            circuit.save(path, force=force)
            rows.append({"circuit": str(path), **circuit.manifest})
    labels = [feature_label(row) for row in rows]
    r = np.array([row["correlation"] for row in rows], float).reshape(-1, len(levels))
    if plot:
        what = f"{granularity}s kept" + ("" if "kernels" in amounts else " (fraction of the relevant ones)")
        title = f"{model}, {criterion}, {len(pictures)} images"
        curves(plot, labels[:: len(levels)], levels, r, title=title, xlabel=what)
    _print_circuits(screen, rows, labels, r, next(iter(amounts)), levels)
    files = f"{len(rows)} circuit{'s' if rows[1:] else ''} in {out / model}"
    screen.say(f"\n{files}{f', plot in {plot}' if plot else ''}")
    screen.json({"circuits": rows, **({"plot": str(plot)} if plot else {})})


@click.command(cls=Command)
@click.argument("circuits", nargs=-1, required=True, metavar="CIRCUIT...")
@options(common.OTHER_WEIGHTS, common.OTHER_IMAGES, common.OTHER_RESIZE, STRICT)
@click.option("--nulls", type=common.WHOLE, help="Random circuits to judge beside each; 99 let p be .01.")
@options(SEED, JSON, QUIET)
def evaluate(
    circuits: tuple[str, ...], weights, images, resize, strict, nulls: int | None, seed, as_json, quiet
) -> None:
    """Judge CIRCUIT files: r of each with its feature in the full network, and its faithfulness, 1 less its squared
    error over that of no circuit at all. --json has more measures, and the 95 % interval of r over images.

    Weights and images are those that the circuit was made with, unless told otherwise. On other images (--images
    photos:b for a circuit made on photos:a) the judgement is fair. With --nulls, p is the share of random circuits of
    as many kernels (or filters) in each layer, and of this one, whose r is as high; by mean ablation, each with its
    means over these images.
    """
    screen = Screen(quiet, as_json)
    opened = [(path, Circuit.load(path)) for path in circuits]
    model_of, images_of = functools.cache(load), functools.cache(read_images)  # most circuits share both
    rows = []
    with screen.progress("judging", len(opened), of="circuits", each=1) as progress:
        for path, circuit in opened:
            network = network_of(circuit, weights, model_of)
            pictures = pictures_of(circuit, images, resize, network, strict, images_of)
            judged = {"images": pictures.source, "number": len(pictures), **_judged(network, pictures, circuit)}
            if nulls:
                judged |= _beside_nulls(network, pictures, circuit, nulls, seed)
            recorded = {"feature": feature_label(circuit.manifest), "recorded": circuit.manifest["correlation"]}
            rows.append({"circuit": path, **judged, **recorded})
            progress(1)
    columns = {name: name for name in ("circuit", "images", "number")}
    columns |= {"correlation": "r", "recorded": "r when made", "faithfulness": "faithfulness"}
    columns |= {"mean_of_nulls": "r of random ones", "p": "p"} if nulls else {}
    screen.table(tuple(columns.values()), [[row[c] for c in columns] for row in rows])
    screen.json({"circuits": rows})


@click.command(cls=Command)
@click.argument("circuits", nargs=-1, required=True, metavar="CIRCUIT...")
@click.option("--compact", is_flag=True, help="Write STEM.compact.pt2 instead: a network of the live channels alone.")
@click.option("--onnx", is_flag=True, help="Write STEM.compact.onnx instead, or as well: the same for ONNX.")
@options(common.OTHER_WEIGHTS, OUT, OVERWRITE, JSON, QUIET)
def export(circuits: tuple[str, ...], compact, onnx, weights, out: Path, force, as_json, quiet) -> None:
    """Write CIRCUIT files for PyTorch: STEM.masks.pt, STEM.masks.safetensors and STEM.weights.pth.

    The masks fit torch.nn.utils.prune; the weights are the network's with the masks multiplied in,
    and with mean ablation's offsets in the biases or BatchNorms' running means.

    With --compact or --onnx, a smaller network that computes the feature alone, without dead channels. It takes any
    number of normalised images (N, 3, H, W) of the network's size.
    """
    screen = Screen(quiet, as_json)
    stems = [out / Path(path).name.removesuffix(".safetensors") for path in circuits]
    if twice := [s for s in stems if stems.count(s) > 1]:
        raise InputError(f"two circuits would be exported to the same {str(twice[0])!r}; export them one by one")
    opened = [Circuit.load(path) for path in circuits]
    model_of = functools.cache(load)
    written = []
    if compact or onnx:
        asked = {"program": compact, "onnx": onnx, "force": force}
        for to in stems:
            free_compact_paths(to, **asked)
        for circuit, to in zip(opened, stems, strict=True):
            written += [str(p) for p in export_compact(network_of(circuit, weights, model_of), circuit, to, **asked)]
        for path in written:
            screen.say(path)
        if compact:
            screen.say("\nIn PyTorch:\n\n" + COMPACT_USAGE.format(program=written[0]))
        screen.json({"files": written})
        return
    for to in stems:
        free_paths(to, force=force)
    for circuit, to in zip(opened, stems, strict=True):
        written += [str(p) for p in export_circuit(network_of(circuit, weights, model_of), circuit, to, force=force)]
    for path in written:
        screen.say(path)
    masks, _, state = written[: len(ENDINGS)]
    if any(circuit.offsets for circuit in opened):
        screen.say("\nThe weights hold the means of removed kernels; masks alone set them to zero.")
    screen.say("\nIn PyTorch, with the network in `model`:\n\n" + USAGE.format(masks=masks, weights=state))
    screen.json({"files": written})


def _judged(model: Model, images: Images, circuit: Circuit) -> dict[str, Any]:
    """The measures of one circuit, by the ablation that it was made with."""
    given: list[Any] = [circuit.masks] if circuit.offsets is None else [circuit.masks, circuit.offsets]
    masks, *offsets = [{name: a[None] for name, a in arrays.items()} for arrays in given]
    ablation = "mean" if offsets else "zero"
    e = judge(model, images, circuit.features, masks, ablation=ablation, offsets=offsets or None)
    found = {
        "correlation": e.correlation(),
        "faithfulness": e.faithfulness(),
        "relative_squared_error": e.relative_squared_error(),
        "top_image_overlap": e.top_image_overlap(min(10, len(images))),
    }
    numbers = {name: finite(value[0, 0]) for name, value in found.items()}
    return numbers | {"interval": [finite(end) for end in e.interval()[0, 0]], "ablation": ablation}


def _beside_nulls(model: Model, images: Images, circuit: Circuit, number: int, seed: int) -> dict[str, Any]:
    """r of random circuits, 0 where one is constant, and p."""
    features, masks = circuit.features, {name: mask[None] for name, mask in circuit.masks.items()}
    possible = relevant_kernels(model, features, layers=tuple(masks))
    masks = masks_at(masks, str(circuit.manifest.get("granularity", "kernel")))  # filters beside random filters
    asked: Any = {"number": number, "by_layer": True, "seed": seed}
    asked["ablation"] = "zero" if circuit.offsets is None else "mean"
    found = against_nulls(model, images, features, masks, possible, **asked)
    return {"mean_of_nulls": float(np.nan_to_num(found.nulls).mean()), "p": finite(float(found.p[0, 0]))}


def _print_circuits(
    screen: Screen, rows: list[dict[str, Any]], labels: list[str], r: np.ndarray, amount: str, levels: list
) -> None:
    """A line for each circuit; or, were they too many, one for each feature and one for their mean."""
    if len(rows) <= LONG or len(levels) == 1:
        columns = (*(["keep"] if amount == "keep" else []), "relevant", "kept", "effective", "correlation")
        lines = [[label, *(row[c] for c in columns)] for label, row in zip(labels, rows, strict=True)]
        screen.table(("feature", *columns[:-1], "r"), lines)
        return
    lines = [[label, *(finite(v) for v in line)] for label, line in zip(labels[:: len(levels)], r, strict=True)]
    means = [finite(column[np.isfinite(column)].mean()) if np.isfinite(column).any() else None for column in r.T]
    screen.table(("feature", *(f"r at {amount} {level:g}" for level in levels)), [*lines, ["mean", *means]])


def _plot_stem(manifests: Sequence[dict[str, Any]], levels: int) -> str:
    """`features.10_9.snip` for one feature, `features.10_9_and_3_more.snip` for four."""
    more = len(manifests) // levels - 1
    return f"{feature_stem(manifests[0])}{f'_and_{more}_more' if more else ''}.{method_stem(manifests[0])}"
