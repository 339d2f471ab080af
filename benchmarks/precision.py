"""`python -m benchmarks.precision`: what arithmetic and the way of computing do to scores and masks.

`measure` takes features of the pretrained AlexNet and the photographs that come along, and compares with float64:
jaxcircuits as it is, in several ways of dividing the work, each in a process of its own; and a plain program
(arithmetic.py) with the operands of every product rounded to TensorFloat-32 and bfloat16, as a GPU rounds them. That
is emulated: products of such operands are exact in float32, in which they are summed. `table` writes the tables of
docs/numbers.md from the JSON.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

import jaxcircuits as jc
from benchmarks.arithmetic import ARITHMETIC, Scores, plain
from benchmarks.measure import machine

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results/precision-cpu.json"
FEATURES = {"features.6": (56, 100, 200, 300), "features.10": (9, 161, 62, 186)}
CRITERIA: dict[str, dict[str, Any]] = {
    "snip": {"criterion": "snip"},
    "whole set": {"criterion": "snip", "absolute": "whole_set"},
    "actgrad": {"criterion": "actgrad"},
}
KEEPS = (0.2, 0.05, 0.01)
TIE = 1e-5  # as far as this from the last kept score, relative to it, either kernel may be kept
WAYS = {  # name -> options of `score`, or devices of an atlas; cores
    "as it comes": ({}, None),
    "again": ({}, None),
    "one feature at a time": ({"chunk": 1}, None),
    "three features at a time": ({"chunk": 3}, None),
    "one image at a time": ({"batch": 1}, None),
    "five images at a time": ({"batch": 5}, None),
    "one core": ({}, 1),
    "two devices": ({"devices": 2}, None),
    "four devices": ({"devices": 4}, None),
}
BLOCK = re.compile(r"<!-- precision: (?P<file>\S+) (?P<what>\w+) -->\n.*?<!-- /precision -->", re.DOTALL)


def library(model: jc.Model, images: np.ndarray, layer: str, channels: Sequence[int], way: str) -> dict[str, Scores]:
    """The same of jaxcircuits."""
    options = dict(WAYS[way][0])
    features, found = jc.Features(layer, channels), {}
    for name, asked in CRITERIA.items():
        if devices := options.get("devices"):
            import jax

            assert len(jax.devices()) == devices
            with tempfile.TemporaryDirectory() as folder:
                jc.build_atlas(model, images, features, directory=folder, keep=0.05, scores="float32", chunk=2, **asked)
                atlas = jc.Atlas(folder)
                circuits = [atlas.circuit(label, keep=0.05) for label in features.labels]
            found[name] = {key: np.stack([(c.scores or {})[key] for c in circuits]) for key in circuits[0].masks}
        else:
            scores = jc.score(model, images, features, **asked, **options)
            found[name] = {key: np.asarray(scores.values[key]) for key in scores.layers}
    return found


def pixels(model: jc.Model, number: int) -> np.ndarray:
    """So many crops, of as many photographs as there are."""
    crops = np.concatenate(list(jc.read_images("photos", model)))
    return crops[np.linspace(0, len(crops), number, endpoint=False).astype(int)]


def flat(scores: Scores, relevant: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Scores (F, M) in the order in which ties are broken, float64, and which are relevant."""
    parts = [
        np.concatenate([np.swapaxes(a[name], 1, 2).reshape(len(a[name]), -1) for name in relevant], 1)
        for a in (scores, relevant)
    ]
    return parts[0].astype(np.float64), parts[1].astype(bool)


def compared(exact: Scores, scores: Scores, relevant: Scores, keeps: Sequence[float] = KEEPS) -> dict[str, Any]:
    """How far scores are from exact ones, and what that does to the masks.

    Returns:
        error: the largest difference, relative to the largest score of the layer; equal: whether there is none; masks:
        for each keep level the number of kept kernels, how many of them are others than the exact ones, how many
        of these are ties, and how far off the farthest is, relative to the last score that is kept.
    """
    layers = [(exact[n].astype(np.float64), scores[n].astype(np.float64)) for n in exact]
    error = max((np.abs(a - b).max((1, 2)) / np.abs(a).max((1, 2))).max() for a, b in layers)
    (a, possible), (b, _) = flat(exact, relevant), flat(scores, relevant)
    masks = []
    for keep in keeps:
        record = {"keep": keep, "kept": 0, "others": 0, "ties": 0, "farthest": 0.0}
        for f in range(len(a)):
            count = max(1, int(np.floor(keep * possible[f].sum() + 0.5)))
            order = [np.argsort(-np.where(possible[f], s[f], -1), kind="stable")[:count] for s in (a, b)]
            last = a[f][order[0][-1]]
            swapped = np.setxor1d(order[0], order[1])
            distance = np.abs(a[f][swapped] - last) / last
            record["kept"] += count
            record["others"] += len(swapped) // 2
            record["ties"] += int((distance <= TIE).sum()) // 2  # of an exchange both are near
            record["farthest"] = max(record["farthest"], float(distance.max(initial=0)))
        masks.append(record)
    return {"error": float(error), "equal": all((x == y).all() for x, y in layers), "masks": masks}


@click.group()
def main() -> None:
    """Float32 beside float64, TensorFloat-32 and bfloat16; the same command in other ways."""


@main.command()
@click.argument("way", type=click.Choice([*WAYS, *ARITHMETIC]))
@click.argument("images", type=int)
@click.argument("out", type=click.Path(path_type=Path))
def scores(way: str, images: int, out: Path) -> None:
    """One way's scores as .npz; a process of its own, which `measure` starts."""
    model = jc.load("alexnet")
    photos, arrays = pixels(model, images), {}
    for layer, channels in FEATURES.items():
        found = (plain if way in ARITHMETIC else library)(model, photos, layer, channels, way)
        arrays |= {f"{layer}|{c}|{name}": value for c, s in found.items() for name, value in s.items()}
    np.savez(out, **arrays)


def apart(way: str, images: int, path: Path) -> None:
    """`scores` in a process of its own, with the devices and cores of its way."""
    options, cores = WAYS.get(way, ({}, None))
    flags = f"--xla_force_host_platform_device_count={options.get('devices', 1)}"
    pinned = ["taskset", "-c", ",".join(map(str, range(cores)))] if cores else []
    command = [*pinned, sys.executable, "-m", "benchmarks.precision", "scores", way, str(images), str(path)]
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": str(path.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **compiled, "XLA_FLAGS": flags})


@main.command()
@click.option("--images", default=12, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
@click.option("--folder", type=click.Path(path_type=Path), help="Where scores stay; those there are not made again.")
@click.option("--only", multiple=True, type=click.Choice(list(WAYS)[1:]), help="Only these ways of dividing the work.")
def measure(images: int, out: Path, folder: Path | None, only: Sequence[str]) -> None:
    """Run everything and write JSON."""
    ways = ["as it comes", *(way for way in list(WAYS)[1:] if way in only or not only)]
    model, found = jc.load("alexnet"), {}
    with tempfile.TemporaryDirectory() as beside:
        folder = folder or Path(beside)
        for way in (*ARITHMETIC, *ways):
            path = folder / f"{way.replace(' ', '-')}.npz"
            if not path.exists():
                apart(way, images, path)
            with np.load(path) as arrays:
                found[way] = {key: arrays[key] for key in arrays.files}
            click.echo(way, err=True)

    def of(way: str, layer: str, criterion: str) -> Scores:
        start = f"{layer}|{criterion}|"
        return {key.removeprefix(start): value for key, value in found[way].items() if key.startswith(start)}

    records = []
    for layer, channels in FEATURES.items():
        possible = jc.relevant_kernels(model, jc.Features(layer, channels))
        relevant = {name: np.asarray(possible[name]) for name in of("float64", layer, "snip")}
        for criterion in CRITERIA:
            pairs = [("float64", way) for way in ("as it comes", "float32", "tf32", "bfloat16")]
            pairs += [("as it comes", way) for way in ways[1:]]
            for exact, way in pairs:
                result = compared(of(exact, layer, criterion), of(way, layer, criterion), relevant)
                records.append({"layer": layer, "criterion": criterion, "of": way, "against": exact, **result})
    document = {"kind": "precision", **machine(), "images": images, "features": FEATURES, "records": records}
    out.write_text(json.dumps(document, indent=1) + "\n")


def arithmetic_table(document: dict[str, Any]) -> list[list[str]]:
    """Against float64: a row for each arithmetic and criterion."""
    rows = [["arithmetic", "criterion", "error", *(f"keep {keep}" for keep in KEEPS), "of these ties", "farthest"]]
    names = {"as it comes": "float32, jaxcircuits", "float32": "float32, plain program", "tf32": "TF32, emulated",
             "bfloat16": "bfloat16, emulated"}  # fmt: skip
    for way, name in names.items():
        for criterion in CRITERIA:
            rows.append([name, criterion, *_cells(_chosen(document, "float64", way, criterion))])
    return rows


def ways_table(document: dict[str, Any]) -> list[list[str]]:
    """Against jaxcircuits as it comes: a row for each way, the worst of all criteria."""
    rows = [["the work divided", "error", *(f"keep {keep}" for keep in KEEPS), "of these ties", "farthest"]]
    for way in dict.fromkeys(record["of"] for record in document["records"] if record["against"] == "as it comes"):
        rows.append([way, *_cells(_chosen(document, "as it comes", way))])
    return rows


def _chosen(document: dict[str, Any], against: str, way: str, criterion: str | None = None) -> list[dict[str, Any]]:
    return [
        r for r in document["records"]
        if r["of"] == way and r["against"] == against and criterion in (None, r["criterion"])
    ]  # fmt: skip


def _cells(records: list[dict[str, Any]]) -> list[str]:
    masks = [mask for record in records for mask in record["masks"]]
    error = "the same bits" if all(r["equal"] for r in records) else f"{max(r['error'] for r in records):.1e}"
    shares = []
    for keep in KEEPS:
        here = [mask for mask in masks if mask["keep"] == keep]
        others, kept = (sum(mask[key] for mask in here) for key in ("others", "kept"))
        shares.append(f"{others / kept:.2%} ({others} of {kept})")
    ties, others = (sum(mask[key] for mask in masks) for key in ("ties", "others"))
    farthest = max(mask["farthest"] for mask in masks)
    return [error, *shares, f"{ties} of {others}" if others else "-", f"{farthest:.1e}" if others else "-"]


TABLES = {"arithmetic": arithmetic_table, "ways": ways_table}


def filled(page: str, root: Path = ROOT) -> str:
    """The page with its tables."""

    def table(found: re.Match[str]) -> str:
        document = json.loads((root / found["file"]).read_text())
        rows = TABLES[found["what"]](document)
        lines = [f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]
        return "\n".join([found[0].partition("\n")[0], *lines, "<!-- /precision -->"])

    return BLOCK.sub(table, page)


@main.command()
def table() -> None:
    """Write the tables of docs/numbers.md."""
    path = ROOT / "docs/numbers.md"
    path.write_text(filled(path.read_text()))


if __name__ == "__main__":
    main()
