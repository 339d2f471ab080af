"""Networks: `info` shows them, `convert` takes their weights to Flax and back."""

from __future__ import annotations

import os
from pathlib import Path

import click

from jaxcircuits.cli import common
from jaxcircuits.cli.common import JSON, OVERWRITE, QUIET, SEED, TRANSFORM, WEIGHTS, Command, options
from jaxcircuits.cli.screen import Screen
from jaxcircuits.errors import InputError
from jaxcircuits.files import check_writable, folder
from jaxcircuits.loading import checkpoint_manifest, describe_architecture
from jaxcircuits.models import ARCHITECTURES, ELSEWHERE
from jaxcircuits.receptive import fields
from weights_conversion import is_checkpoint, save_checkpoint, write_state
from weights_conversion.files import FORMATS
from weights_conversion.lpips import FILES

# Files of weights that are not written, and no names for a directory.
UNKNOWN = (".npz", ".npy", ".ckpt", ".msgpack", ".h5", ".onnx", ".pb", ".pickle", ".pkl")


@click.command(cls=Command)
@click.argument("model")
@options(WEIGHTS, TRANSFORM, SEED)
@click.option("--out", type=common.Place(), help="[default: MODEL.orbax]")
@options(OVERWRITE, JSON, QUIET)
def convert(model: str, weights, transform_input, seed, out: Path | None, force, as_json, quiet) -> None:
    """Convert MODEL's weights to Flax, or back.

    They become an orbax checkpoint, which --weights takes; or PyTorch's state dict again, bit for bit, if --out ends in
    .pth, .pt, .bin or .safetensors.
    """
    screen = Screen(quiet, as_json)
    out = out or Path(f"{model}.orbax")
    as_file = out.suffix.lower() in FORMATS
    if os.path.lexists(out):
        if not force:
            raise InputError(f"{str(out)!r} exists; --force overwrites it")
        if out.is_dir() if as_file else not is_checkpoint(out):
            raise InputError(f"{str(out)!r} is no {'file' if as_file else 'checkpoint'}, so it is not overwritten")
    if out.suffix.lower() in UNKNOWN:
        raise InputError(f"--out is {str(out)!r}; expected {', '.join(FORMATS)}, or a directory for Flax")
    check_writable(out if as_file else out.parent / f".{out.name}")
    network = common.network_given(model, weights, transform_input, seed)
    with folder(out.parent):
        if as_file:
            write_state(out, network.state_dict())
        else:
            manifest = checkpoint_manifest(network)
            save_checkpoint(out, network.variables, network.extras, manifest, overwrite=force and out.exists())
    screen.say(f"{model} with weights {network.weights}{'' if weights else ' (the default)'} is in {out}")
    if network.missing:
        layers = dict.fromkeys(name.rpartition(".")[0] for name in network.missing)
        screen.say(f"the source has no weights for {', '.join(layers)}")
    screen.json({"model": model, "out": str(out), "sha256": network.sha256, "missing": list(network.missing)})


@click.command(cls=Command)
@click.argument("model", required=False)
@options(JSON)
def info(model: str | None, as_json) -> None:
    """List the models, or the layers of MODEL."""
    screen = Screen(False, as_json)
    if model is None:
        sources = {
            name: ["lpips"] * (name in FILES) + ["torchvision"] * (name not in ELSEWHERE) + ["random"]
            for name in ARCHITECTURES
        }
        screen.table(("model", "weights without a file"), [[name, ", ".join(s)] for name, s in sources.items()])
        screen.json({"models": list(ARCHITECTURES), "weights": sources})
        return
    network, variables = describe_architecture(model)
    seen = fields(network, variables)
    layers = [
        {
            "layer": layer.name,
            "kind": layer.kind,
            "weight": [layer.outputs, layer.inputs, *(layer.window if layer.kind == "conv" else ())],
            "kernels": layer.kernels,
            "output": [layer.outputs, *(layer.positions if layer.kind == "conv" else ())],
            "receptive_field": list(seen[layer.name].size),
        }
        for layer in network.layers.values()
    ]
    cells = [[" x ".join(map(str, v)) if isinstance(v, list) else v for v in layer.values()] for layer in layers]
    screen.table(("layer", "kind", "weight (O x I x h x w)", "kernels", "output (O x H x W)", "receptive field"), cells)
    screen.json({"model": model, "layers": layers})
