"""`python -m benchmarks.visualisation`: do pictures drive their features as high as Lucent's, in as many steps?

Needs torch-lucent and what it imports (`pip install torch-lucent kornia ipython`). Both see the same pretrained network
and maximise the feature's value in the middle, with their own defaults in all else. Judged are the pictures as they
are, and in the mean over 25 shifts by -4, -2, 0, 2 and 4 pixels each way, in PyTorch.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import torch

import jaxcircuits as jc
from benchmarks.measure import machine
from jaxcircuits.pictures import visualise
from jaxcircuits.pictures.visualise import plan

FEATURES = "features.3:8 features.6:56 features.6:100 features.10:9 features.10:161"
SHIFTS = (-4, -2, 0, 2, 4)


def torchvision():
    """torchvision, which Lucent imports, also beside a CPU build of PyTorch that lacks two of its operators."""
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)  # an operator lives as long as its library
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision
    return torchvision


_LIBRARIES: list[torch.library.Library] = []


def lucents(network: torch.nn.Module, layer: str, channel: int, steps: int, side: int) -> np.ndarray:
    """Lucent's picture (side, side, 3) from 0 to 1."""
    kornia, transform = import_module("kornia"), import_module("kornia.geometry.transform")
    for name in ("get_rotation_matrix2d", "warp_affine"):  # where Lucent looks for them
        if not hasattr(kornia, name):
            setattr(kornia, name, getattr(transform, name))
    objectives, param, render = (import_module(f"lucent.optvis.{name}") for name in ("objectives", "param", "render"))
    objective = objectives.neuron(layer.replace(".", "_"), channel)
    picture = lambda: param.image(side)  # noqa: E731
    options = {"progress": False, "show_image": False}
    return render.render_vis(network, objective, picture, thresholds=(steps,), **options)[-1][0]


def judged(network, picture: np.ndarray, model: jc.Model, layer: str, channel: int, place) -> tuple[float, float]:
    """The feature's value at a place, and its mean over shifts."""
    image = torch.from_numpy((picture - np.array(model.mean)) / np.array(model.std)).permute(2, 0, 1)[None].float()
    number, found = int(layer.rpartition(".")[2]), []
    for down in SHIFTS:
        for right in SHIFTS:
            with torch.no_grad():
                maps = network.features[: number + 1](image.roll((down, right), (2, 3)))
            height, width = maps.shape[2:]
            h, w = place or (height // 2, width // 2)
            found.append(float(maps[0, channel, h, w]))
    return found[len(found) // 2], statistics.fmean(found)


@click.command()
@click.option("--features", default=FEATURES, show_default=True, help="LAYER:CHANNEL, separated by blanks.")
@click.option("--model", "name", default="alexnet", show_default=True, type=click.Choice(["alexnet", "vgg16"]))
@click.option("--steps", default=128, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures as JSON.")
def main(features: str, name: str, steps: int, out: Path | None) -> None:
    """Compare jaxcircuits' feature visualisation with Lucent's."""
    if find_spec("lucent") is None:
        raise click.UsageError("Lucent is not installed; expected after pip install torch-lucent kornia ipython")
    torch.manual_seed(0)
    np.random.seed(0)
    model = jc.load(name)
    network = getattr(torchvision().models, name)().eval()
    network.load_state_dict({k: torch.tensor(v) for k, v in model.state_dict().items()}, strict=False)
    for module in network.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False  # Lucent would see the feature after it
    rows = []
    for feature in features.split():
        layer, _, number = feature.partition(":")
        begin = time.perf_counter()
        found = visualise(model, jc.Features(layer, channels=[int(number)]), steps=steps, crop=False)
        middle = time.perf_counter()
        theirs = lucents(network, layer, int(number), steps, model.input_size)
        seconds = middle - begin, time.perf_counter() - middle
        place = plan(model, layer, "middle")[0].position
        ours = judged(network, found.pictures[0] / np.float32(255), model, layer, int(number), place)
        row = {"model": name, "feature": feature, "steps": steps, "jaxcircuits": ours}
        rows.append(row | {"lucent": judged(network, theirs, model, layer, int(number), None), "seconds": seconds})
        click.echo("{feature}: jaxcircuits {jaxcircuits}, Lucent {lucent}, seconds {seconds}".format(**rows[-1]))
    for which, what in enumerate(("as they are", "shifted")):
        ratios = [row["jaxcircuits"][which] / row["lucent"][which] for row in rows]
        click.echo(f"jaxcircuits / Lucent, pictures {what}: median {statistics.median(ratios):.2f}")
    if out is not None:
        surroundings = machine(("jax", "jaxlib", "flax", "torch", "torch-lucent", "kornia", "numpy"))
        document = {"kind": "visualisation", **surroundings, "rows": rows}
        out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
