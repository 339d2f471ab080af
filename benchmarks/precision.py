"""`python -m benchmarks.precision`: what arithmetic and the way of computing do to scores and masks.

`measure` takes features of the pretrained AlexNet and the photographs that come along, and compares with float64:
jaxcircuits as it is, in several ways of dividing the work, each in a process of its own; and the plain program below
with the operands of every product rounded to TensorFloat-32 and bfloat16, which is what a GPU does with them. That is
emulated: products of such operands are exact in float32, in which they are summed. `table` writes docs/numbers.md's
tables from the JSON.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

import jaxcircuits as jc
from benchmarks.measure import machine

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results/precision-cpu.json"
FEATURES = {"features.6": (56, 100, 8, 161, 200, 250, 300, 383), "features.10": (9, 161, 0, 31, 62, 124, 186, 255)}
CRITERIA = {
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

Scores = dict[str, np.ndarray]  # {layer: (F, I, O)}
Round = Callable[[np.ndarray], np.ndarray]


def to_bits(mantissa: int) -> Round:
    """Rounds float32 to so many explicit mantissa bits, to nearest, ties to even: TF32 has 10, bfloat16 7."""
    drop = np.uint32(23 - mantissa)
    half = np.uint32((1 << (23 - mantissa - 1)) - 1)

    def rounded(array: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        return (((bits + half + ((bits >> drop) & np.uint32(1))) >> drop) << drop).view(np.float32)

    return rounded


# name -> type, and what happens to the operands of a product
ARITHMETIC: dict[str, tuple[type, Round]] = {
    "float64": (np.float64, lambda array: array),
    "float32": (np.float32, lambda array: array),
    "tf32": (np.float32, to_bits(10)),
    "bfloat16": (np.float32, to_bits(7)),
}


class Convolution:
    """One of AlexNet's, with the ReLU and the pooling before it, for one image; all of it is matrix products."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray, stride: int, padding: int, pooled: bool, rounded: Round):
        self.outputs, self.inputs, self.size, _ = weight.shape
        self.weight = weight.reshape(self.outputs, self.inputs, -1).transpose(1, 2, 0)  # (I, K, O)
        self.bias, self.stride, self.padding, self.pooled, self.q = bias, stride, padding, pooled, rounded

    def forward(self, x: np.ndarray, first: bool) -> np.ndarray:
        """Maps x (I, H, W), before the ReLU unless they are pixels, to (O, H, W)."""
        self.on = np.ones_like(x, bool) if first else x > 0
        self.before = x.shape
        x = x * self.on
        if self.pooled:
            windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2]
            most = windows.reshape(*windows.shape[:3], 9).argmax(-1)
            rows, columns = (2 * np.arange(n) for n in most.shape[1:])
            self.won = (rows[:, None] + most // 3) * x.shape[2] + columns + most % 3  # (I, h, w) places in a map
            x = np.take_along_axis(x.reshape(len(x), -1), self.won.reshape(len(x), -1), 1).reshape(most.shape)
        self.shape = x.shape
        x = np.pad(x, ((0, 0), *[(self.padding,) * 2] * 2))
        windows = np.lib.stride_tricks.sliding_window_view(x, (self.size,) * 2, (1, 2))
        windows = windows[:, :: self.stride, :: self.stride]
        self.high, self.wide = windows.shape[1:3]
        self.patches = np.ascontiguousarray(windows).reshape(self.inputs, -1, self.size**2)  # (I, P, K)
        self.contributions = self.q(self.patches) @ self.q(self.weight)  # (I, P, O)
        return (self.contributions.sum(0) + self.bias).T.reshape(self.outputs, self.high, self.wide)

    def by_weight(self, g: np.ndarray) -> np.ndarray:
        """w dL/dw (F, I, K, O) for g (F, P, O)."""
        patches = self.q(self.patches).transpose(0, 2, 1).reshape(-1, g.shape[1])
        products = patches @ self.q(g).transpose(1, 0, 2).reshape(g.shape[1], -1)
        return products.reshape(*self.weight.shape[:2], *g.shape[::2]).transpose(2, 0, 1, 3) * self.weight

    def actgrad(self, g: np.ndarray) -> np.ndarray:
        """The mean over positions of |A g|: (F, I, O)."""
        a, b = self.q(np.abs(self.contributions)).transpose(2, 0, 1), self.q(np.abs(g)).transpose(2, 1, 0)
        return (a @ b).transpose(2, 1, 0) / g.shape[1]

    def backward(self, g: np.ndarray) -> np.ndarray:
        """dL/dx (F, I, H, W)."""
        flat = self.weight.reshape(-1, self.outputs).T  # (O, I K)
        grown = (self.q(g) @ self.q(flat)).reshape(len(g), self.high, self.wide, self.inputs, self.size, self.size)
        i, h, w = self.shape
        x = np.zeros((len(g), i, h + 2 * self.padding, w + 2 * self.padding), g.dtype)
        for row, column in np.ndindex(self.size, self.size):
            rows = slice(row, row + self.stride * self.high, self.stride)
            columns = slice(column, column + self.stride * self.wide, self.stride)
            x[:, :, rows, columns] += grown[..., row, column].transpose(0, 3, 1, 2)
        x = x[:, :, self.padding : self.padding + h, self.padding : self.padding + w]
        if self.pooled:
            spread = np.zeros((len(g), i, self.before[1] * self.before[2]), g.dtype)
            f, c = np.ogrid[: len(g), :i]
            np.add.at(spread, (f[..., None], c[..., None], self.won.reshape(1, i, -1)), x.reshape(len(g), i, -1))
            x = spread.reshape(len(g), *self.before)
        return x * self.on


def plain(
    model: jc.Model, images: np.ndarray, layer: str, channels: Sequence[int], arithmetic: str
) -> dict[str, Scores]:
    """All criteria's scores, {criterion: {layer: (F, I, O)}}, of features of AlexNet, an image at a time."""
    kind, rounded = ARITHMETIC[arithmetic]
    state = {name: value.astype(kind) for name, value in model.state_dict().items() if name.startswith("features.")}
    geometry = {0: (4, 2, False), 3: (1, 2, True), 6: (1, 1, True), 8: (1, 1, False), 10: (1, 1, False)}
    names = [f"features.{n}" for n in geometry if n <= int(layer.partition(".")[2])]
    layers = [
        Convolution(state[f"{name}.weight"], state[f"{name}.bias"], *geometry[int(name[9:])], rounded)
        for name in names
    ]  # fmt: skip
    found: dict[str, Scores] = {criterion: dict.fromkeys(names, 0) for criterion in CRITERIA}  # pyright: ignore
    for image in images:
        x = image.transpose(2, 0, 1).astype(kind)
        for number, convolution in enumerate(layers):
            x = convolution.forward(x, number == 0)
        maps = x.reshape(len(x), -1)
        g = np.zeros((len(channels), maps.shape[1], len(x)), kind)
        for f, channel in enumerate(channels):
            g[f, :, channel] = np.sign(maps[channel])
        for name, convolution in reversed(list(zip(names, layers, strict=True))):
            by_weight = convolution.by_weight(g)
            found["snip"][name] = found["snip"][name] + np.abs(by_weight).mean(2)
            found["whole set"][name] = found["whole set"][name] + by_weight
            found["actgrad"][name] = found["actgrad"][name] + convolution.actgrad(g)
            if name != names[0]:
                g = convolution.backward(g)
                g = g.reshape(*g.shape[:2], -1).transpose(0, 2, 1)
    found["whole set"] = {name: np.abs(total).mean(2) for name, total in found["whole set"].items()}
    return {criterion: {name: s / len(images) for name, s in scores.items()} for criterion, scores in found.items()}


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
            found[name] = {key: np.stack([c.scores[key] for c in circuits]) for key in circuits[0].masks}
        else:
            scores = jc.score(model, images, features, **asked, **options)
            found[name] = {key: np.asarray(scores.values[key]) for key in scores.layers}
    return found


def pixels(model: jc.Model, number: int) -> np.ndarray:
    return np.concatenate(list(jc.read_images("photos", model, limit=number)))


def flat(scores: Scores, relevant: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Scores (F, M) in the order in which ties are broken, float64, and which are relevant."""
    parts = [
        np.concatenate([np.swapaxes(a[name], 1, 2).reshape(len(a[name]), -1) for name in relevant], 1)
        for a in (scores, relevant)
    ]
    return parts[0].astype(np.float64), parts[1].astype(bool)


def compared(exact: Scores, scores: Scores, relevant: Scores) -> dict[str, Any]:
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
    for keep in KEEPS:
        record = {"keep": keep, "kept": 0, "others": 0, "ties": 0, "farthest": 0.0}
        for f in range(len(a)):
            count = max(1, int(np.floor(keep * possible[f].sum() + 0.5)))
            order = [np.argsort(-np.where(possible[f], s[f], -1), kind="stable")[:count] for s in (a, b)]
            last = a[f][order[0][-1]]
            swapped = np.setxor1d(*order)
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


@main.command()
@click.option("--images", default=24, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
def measure(images: int, out: Path) -> None:
    """Run everything and write JSON."""
    model, found = jc.load("alexnet"), {}
    with tempfile.TemporaryDirectory() as folder:
        for way in (*ARITHMETIC, *WAYS):
            options, cores = WAYS.get(way, ({}, None))
            path = Path(folder, f"{way}.npz")
            flags = f"--xla_force_host_platform_device_count={options.get('devices', 1)}"
            compiled = {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
            pinned = ["taskset", "-c", ",".join(map(str, range(cores)))] if cores else []
            command = [*pinned, sys.executable, "-m", "benchmarks.precision", "scores", way, str(images), str(path)]
            subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **compiled, "XLA_FLAGS": flags})
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
            pairs += [("as it comes", way) for way in WAYS if way != "as it comes"]
            for exact, way in pairs:
                result = compared(*(of(name, layer, criterion) for name in (exact, way)), relevant)
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
    for way in list(WAYS)[1:]:
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
