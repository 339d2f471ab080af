"""`python -m benchmarks.compact`: how much faster is a compact circuit than the network with its weights masked?

Both stop at the feature, see the same images and are timed in turn, in Flax and in PyTorch (which runs the whole
network's modules up to the feature's). Circuits are SNIP's, of the pretrained AlexNet.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np
import torch

import jaxcircuits as jc
from benchmarks.measure import machine
from benchmarks.visualisation import torchvision
from jaxcircuits.variables import with_masks


def in_turn(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median seconds of each, after one run that is not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(found) for name, found in seconds.items()}


@click.command()
@click.option(
    "--features", default="features.10:9 features.6:56", show_default=True, help="LAYER:CHANNEL, with blanks."
)
@click.option("--keeps", default="0.2,0.1,0.05,0.01", show_default=True)
@click.option("--images", "count", default=8, show_default=True, help="In one call.")
@click.option("--rounds", default=9, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures as JSON.")
def main(features: str, keeps: str, count: int, rounds: int, out: Path | None) -> None:
    """Time compact circuits beside masked networks."""
    torchvision()
    model = jc.load("alexnet")
    images = np.concatenate(list(jc.read_images("photos:a", model, limit=count)))
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    rows = []
    for feature in features.split():
        layer, _, channel = feature.partition(":")
        asked = jc.Features(layer, channels=[int(channel)])
        for circuit in jc.extract(model, images, asked, keep=[float(keep) for keep in keeps.split(",")]):
            network = model.network()
            masked = with_masks(network, model.variables, dict(circuit.masks))
            stopped = Stopped(jc.pytorch.torchvision_network(model), circuit, layer)
            small, module = jc.compact(model, circuit), jc.pytorch.compact(model, circuit)
            truncated = jax.jit(lambda v, x, layer=layer: full(model, v, x, layer))
            with torch.no_grad(), jax.default_matmul_precision("highest"):
                runs = {
                    "flax": lambda run=truncated, v=masked: run(v, images),
                    "flax compact": lambda small=small: small(images),
                    "torch": lambda run=stopped: run(pixels),
                    "torch compact": lambda module=module: module(pixels),
                }
                found = {name: np.asarray(run()) for name, run in runs.items()}
                a, b = found["flax"][..., int(channel)], found["flax compact"][..., 0]
                c, d = found["torch"][:, int(channel)], found["torch compact"][:, 0]
                errors = [float(np.abs(x - a).max() / np.abs(a).max()) for x in (b, c, d)]
                seconds = in_turn(runs, rounds)
            weights = sum(leaf.size for leaf in jax.tree.leaves(small.variables["params"]))
            before = sum(la.kernels * np.prod(la.window) for n, la in model.layers.items() if n in small.layers)
            row = {"feature": feature, "keep": circuit.manifest["keep"], "seconds": seconds, "errors": errors}
            row |= {"weights": int(weights), "weights before": int(before)}
            rows.append(row | {"channels": {n: la.outputs for n, la in small.layers.items()}})
            ratios = seconds["flax"] / seconds["flax compact"], seconds["torch"] / seconds["torch compact"]
            click.echo(f"{feature} keep {row['keep']}: Flax {ratios[0]:.2f} x, PyTorch {ratios[1]:.2f} x, {row}")
    if out is not None:
        document = {"kind": "compact", **machine(("jax", "jaxlib", "flax", "torch", "numpy")), "images": count}
        out.write_text(json.dumps({**document, "rounds": rounds, "rows": rows}, indent=2) + "\n")


def full(model: jc.Model, variables: Any, images: Any, layer: str) -> Any:
    """All maps of a layer (N, H, W, O)."""
    _, found = model.module.apply(
        variables, images, capture_intermediates=lambda m, _: m.name == layer, mutable=["intermediates"]
    )
    return found["intermediates"][layer]["__call__"][0]


class Stopped:
    """AlexNet's `features` up to a layer, with a circuit's masks multiplied in."""

    def __init__(self, network: Any, circuit: jc.Circuit, layer: str):
        for name, mask in circuit.masks.items():
            weight = network.get_submodule(name).weight
            weight.data *= torch.from_numpy(np.array(mask.T))[:, :, None, None]
        self.features = network.features[: int(layer.rpartition(".")[2]) + 1]

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.features(pixels)


if __name__ == "__main__":
    main()
