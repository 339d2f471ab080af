"""`python -m benchmarks.compact`: how much faster is a compact circuit than the network with its weights masked?

Both stop at the feature, see the same images and are timed in turn, in Flax and in PyTorch. Circuits are SNIP's, of the
pretrained AlexNet and VGG 16, and of a network of each other family with random weights.
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


# Two features of AlexNet at four amounts, and one of each other family at two.
KEEPS, OTHERS = (0.2, 0.1, 0.05, 0.01), (0.1, 0.05)
FEATURES = {
    "alexnet": ("features.10:9", "features.6:56"),
    "vgg16": ("features.21:0",),
    "convnext_tiny": ("features.5.2.block.0:0",),
    "densenet121": ("features.denseblock3.denselayer11.conv2:0",),
    "efficientnet_b0": ("features.5.0.block.0.0:0",),
    "googlenet": ("inception4c.branch2.1.conv:0",),
    "inception_v3": ("Mixed_6c.branch7x7dbl_4.conv:0",),
    "mnasnet1_0": ("layers.10.1.layers.6:0",),
    "mobilenet_v2": ("features.9.conv.2:0",),
    "mobilenet_v3_small": ("features.7.block.0.0:0",),
    "regnet_y_400mf": ("trunk_output.block3.block3-3.f.a.0:0",),
    "resnet50": ("layer3.0.conv3:0",),
    "resnext50_32x4d": ("layer3.0.conv3:0",),
    "shufflenet_v2_x1_0": ("stage3.3.branch2.5:0",),
    "squeezenet1_1": ("features.9.expand3x3:0",),
}


@click.command()
@click.option("--only", type=click.Choice(list(FEATURES)), help="One network.")
@click.option("--images", "count", default=8, show_default=True, help="In one call.")
@click.option("--rounds", default=9, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures as JSON.")
def main(only: str | None, count: int, rounds: int, out: Path | None) -> None:
    """Time compact circuits beside masked networks."""
    torchvision()
    rows = []
    for name in [only] if only else FEATURES:
        model = jc.load(name, weights="lpips" if name in ("alexnet", "vgg16") else "random")
        images = np.concatenate(list(jc.read_images("photos:a", model, limit=count)))
        for feature in FEATURES[name]:
            layer, _, channel = feature.partition(":")
            asked, keeps = jc.Features(layer, [int(channel)]), KEEPS if name == "alexnet" else OTHERS
            for circuit in jc.extract(model, images, asked, keep=keeps):
                row = {"model": name, "feature": feature, "keep": circuit.manifest["keep"]}
                rows.append(row | timed(model, circuit, images, layer, int(channel), rounds))
                ratios = (f"{kind} {rows[-1]['ratio'][kind]:.2f} x" for kind in ("Flax", "PyTorch"))
                click.echo(f"{name} {feature} keep {row['keep']}: {', '.join(ratios)}, {rows[-1]}")
    if out is not None:
        document = {"kind": "compact", **machine(("jax", "jaxlib", "flax", "torch", "numpy")), "images": count}
        out.write_text(json.dumps({**document, "rounds": rounds, "rows": rows}, indent=2) + "\n")


def timed(
    model: jc.Model, circuit: jc.Circuit, images: np.ndarray, layer: str, channel: int, rounds: int
) -> dict[str, Any]:
    """Seconds of the masked and the compact networks, by how much their features differ, and how large they are."""
    masked = with_masks(model.network(), model.variables, dict(circuit.masks))
    stopped = Stopped(model, circuit, layer)
    small, module = jc.compact(model, circuit), jc.pytorch.compact(model, circuit)
    truncated = jax.jit(lambda v, x: full(model, v, x, layer))
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad(), jax.default_matmul_precision("highest"):
        runs = {
            "flax": lambda: truncated(masked, images),
            "flax compact": lambda: small(images),
            "torch": lambda: stopped(pixels),
            "torch compact": lambda: module(pixels),
        }
        found = {name: np.asarray(run()) for name, run in runs.items()}
        a, b = found["flax"][..., channel], found["flax compact"][..., 0]
        c, d = found["torch"][:, channel], found["torch compact"][:, 0]
        errors = [float(np.abs(x - a).max() / np.abs(a).max()) for x in (b, c, d)]
        seconds = in_turn(runs, rounds)
    return {
        "seconds": seconds,
        "ratio": {
            "Flax": seconds["flax"] / seconds["flax compact"],
            "PyTorch": seconds["torch"] / seconds["torch compact"],
        },
        "errors": errors,
        "weights": int(sum(leaf.size for leaf in jax.tree.leaves(small.variables["params"]))),
        "weights before": int(
            sum(la.kernels * np.prod(la.window) for n, la in model.layers.items() if n in small.layers)
        ),
        "channels": {n: la.outputs for n, la in small.layers.items()},
    }


def full(model: jc.Model, variables: Any, images: Any, layer: str) -> Any:
    """All maps of a layer (N, H, W, O)."""
    _, found = model.module.apply(
        variables,
        images,
        capture_intermediates=lambda module, _: ".".join(module.path) == layer,
        mutable=["intermediates"],
        **model.apply_options,
    )
    return jax.tree.leaves(found)[0]


class Stopped:
    """torchvision's network with a circuit's masks multiplied in, up to a layer."""

    def __init__(self, model: jc.Model, circuit: jc.Circuit, layer: str):
        self.network = jc.pytorch.torchvision_network(model)
        for name, mask in circuit.masks.items():
            weight: Any = self.network.get_submodule(name).weight
            weight.data *= torch.from_numpy(np.array(mask.T))[:, :, None, None]
        self.network.get_submodule(layer).register_forward_hook(self.stop)

    def stop(self, module: Any, inputs: Any, output: torch.Tensor) -> None:
        raise Reached(output)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        try:
            self.network(pixels)
        except Reached as reached:
            return reached.args[0]
        raise AssertionError("the layer was not run")


class Reached(Exception):
    """The feature's maps are there."""


if __name__ == "__main__":
    main()
