"""The command line: parses, calls public functions, prints. Bad input is one sentence on stderr and exit code 2."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from jaxcircuits import __version__
from jaxcircuits.circuit import Circuit, finite
from jaxcircuits.criteria import ABSOLUTE, CRITERIA
from jaxcircuits.data import Images, read_images
from jaxcircuits.errors import InputError
from jaxcircuits.export import USAGE, export_circuit
from jaxcircuits.faithfulness import correlation
from jaxcircuits.features import OBJECTIVES, parse
from jaxcircuits.jobs import extract as extract_circuits
from jaxcircuits.model import Model, checkpoint_manifest, describe_architecture, load
from jaxcircuits.models import ARCHITECTURES
from jaxcircuits.plots import curves
from jaxcircuits.scores import PRECISIONS
from weights_conversion import ConversionError, is_checkpoint, save_checkpoint, write_state

KEEPS = "0.5,0.2,0.1,0.05,0.01"


class BadInput(click.ClickException):
    """Prints its sentence as the last line of stderr; the exit code is 2."""

    exit_code = 2


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """Whatever is wrong with the input ends as `BadInput`."""
    try:
        yield
    except (InputError, ConversionError) as error:
        raise BadInput(str(error)) from error
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise BadInput(f"the system says: {error.strerror or error}{where}") from error


class Command(click.Command):
    def invoke(self, ctx: click.Context) -> Any:
        with one_sentence():
            _settle()
            return super().invoke(ctx)


class Group(click.Group):
    command_class = Command


def _settle() -> None:
    """What only the command line may decide: how warnings look, and where compiled programs are kept."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*so that r is not defined")  # the tables say "constant"
    warnings.showwarning = lambda message, *_, **__: click.echo(f"Warning: {message}", err=True)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "jaxcircuits", "xla"))


def _options(*options: Callable) -> Callable:
    def with_all(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return with_all


WEIGHTS = click.option("--weights", help="lpips, torchvision[:NAME], random, or a path.")
IMAGES = click.option("--images", help="A folder, a file, photos, photos:a, photos:b, tfds:NAME[:SPLIT], .npy or .npz.")
RESIZE = click.option("--resize", type=click.Choice(["crop", "squash"]), help="How pictures get to the input size.")
STRICT = click.option("--strict", is_flag=True, help="Unreadable pictures are an error, not skipped.")
OUT = click.option("--out", type=click.Path(path_type=Path), default=Path("circuits"), show_default=True)
FORCE = click.option("--force", is_flag=True, help="Overwrite files of another manifest.")
SEED = click.option("--seed", type=int, default=0, show_default=True, help="Of random weights and random scores.")
QUIET = click.option("--quiet", is_flag=True, help="Print nothing but errors.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Feature-preserving circuits of convolutional networks."""


@main.command()
@click.argument("model")
@click.argument("features", nargs=-1, required=True, metavar="FEATURE...")
@_options(WEIGHTS, IMAGES, RESIZE, STRICT)
@click.option("--criterion", default="snip", show_default=True, help=", ".join(CRITERIA))
@click.option("--absolute", type=click.Choice(ABSOLUTE), default="per_image", show_default=True)
@click.option("--objective", type=click.Choice(OBJECTIVES), default="abs", show_default=True)
@click.option("--keep", help=f"Fractions of the relevant kernels to keep, comma-separated.  [default: {KEEPS}]")
@click.option("--kernels", help="Numbers of kernels to keep, instead of --keep.")
@click.option("--scores", is_flag=True, help="Store the scores in the circuit files too.")
@click.option("--precision", type=click.Choice(list(PRECISIONS)), default="float32", show_default=True)
@click.option("--chunk", type=click.IntRange(min=1), help="Features scored together.  [default: what fits in memory]")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Images scored together.")
@click.option("--plot", type=click.Path(path_type=Path), help="PNG of r over keep.  [default: beside the circuits]")
@_options(OUT, FORCE, SEED, JSON, QUIET)
def extract(
    model: str, features: tuple[str, ...], weights, images, resize, strict, criterion, absolute, objective, keep,
    kernels, scores, precision, chunk, batch, plot, out: Path, force, seed, as_json, quiet,
) -> None:  # fmt: skip
    """Find the circuits of MODEL's FEATUREs and write a file for each.

    A FEATURE is LAYER:CHANNEL, LAYER:A-B, LAYER:* or LAYER:FILE.npy (directions), then possibly @H,W, @middle or
    @argmax.
    """
    screen = Screen(quiet, as_json)
    network = load(model, weights=weights or "lpips", seed=seed)
    parsed = [parse(text, network.layers, objective=objective) for text in features]
    pictures = read_images(images or "photos", network, resize=resize or "crop", strict=strict)
    amounts = {"kernels": _numbers("kernels", kernels, int)} if kernels else {}
    if keep or not kernels:
        amounts["keep"] = _numbers("keep", keep or KEEPS, float)
    screen.say(f"{model} with weights {_told(weights, 'lpips')}; {len(pictures)} images: {_told(images, 'photos')}")
    rows, total = [], sum(map(len, parsed)) * len(pictures)
    with screen.progress(total, len(pictures)) as progress:
        for circuit in extract_circuits(
            network, pictures, parsed, criterion=criterion, absolute=absolute, seed=seed, precision=precision,
            chunk=chunk, batch=batch, with_scores=scores, progress=progress, **amounts,
        ):  # fmt: skip
            path = out / model / f"{circuit.stem}.safetensors"
            circuit.save(path, force=force)
            rows.append({"circuit": str(path), **circuit.manifest})
    levels = amounts.get("keep", [])
    files = {}
    if len(levels) > 1:
        path = plot or out / model / f"curve.{criterion}.png"
        labels = list(dict.fromkeys(_label(row) for row in rows))
        r = np.array([row["correlation"] for row in rows], float).reshape(len(labels), len(levels))
        curves(path, labels, levels, r, title=f"{model}, {criterion}, {len(pictures)} images")
        files["plot"] = str(path)
    columns = ("relevant", "keep", "kept", "effective", "correlation")
    screen.table([[_label(row), *(row[c] for c in columns)] for row in rows], ("feature", *columns[:-1], "r"))
    screen.say(f"{len(rows)} circuits in {out / model}" + (f", plot in {files['plot']}" if files else ""))
    screen.json({"circuits": rows, **files})


@main.command()
@click.argument("circuits", nargs=-1, required=True, metavar="CIRCUIT...")
@_options(WEIGHTS, IMAGES, RESIZE, STRICT, JSON, QUIET)
def evaluate(circuits: tuple[str, ...], weights, images, resize, strict, as_json, quiet) -> None:
    """Judge CIRCUIT files: r of each with its feature in the full network.

    Weights and images are those that the circuit was made with, unless told otherwise; on other images
    (--images photos:b) the judgement is fair.
    """
    screen = Screen(quiet, as_json)
    rows = []
    for path in circuits:
        circuit = Circuit.load(path)
        network = _model_of(circuit, weights)
        source = circuit.manifest["images"]
        pictures = _images(images or source["source"], network, resize or source["resize"] or "crop", strict)
        masks = {name: mask[None] for name, mask in circuit.masks.items()}
        r = float(correlation(network, pictures, circuit.features, masks)[0])
        rows.append({"circuit": path, "images": pictures.source, "number": len(pictures), "correlation": finite(r)})
        rows[-1] |= {"feature": circuit.features.labels[0], "recorded": circuit.manifest["correlation"]}
    columns = ("circuit", "feature", "images", "number", "correlation", "recorded")
    screen.table([[row[c] for c in columns] for row in rows], (*columns[:4], "r", "r when made"))
    screen.json({"circuits": rows})


@main.command()
@click.argument("circuits", nargs=-1, required=True, metavar="CIRCUIT...")
@_options(WEIGHTS, OUT, FORCE, JSON, QUIET)
def export(circuits: tuple[str, ...], weights, out: Path, force, as_json, quiet) -> None:
    """Write CIRCUIT files for PyTorch: STEM.masks.pt, STEM.masks.safetensors and STEM.weights.pth."""
    screen = Screen(quiet, as_json)
    written = []
    for path in circuits:
        circuit = Circuit.load(path)
        stem = out / Path(path).name.removesuffix(".safetensors")
        written += [str(p) for p in export_circuit(_model_of(circuit, weights), circuit, stem, force=force)]
    for path in written:
        screen.say(path)
    screen.say("\nIn PyTorch, with the network in `model`:\n\n" + USAGE.format(masks=written[0]))
    screen.json({"files": written})


@main.command()
@click.argument("model")
@_options(WEIGHTS, SEED)
@click.option("--out", type=click.Path(path_type=Path), help="[default: MODEL.orbax]")
@_options(FORCE, JSON, QUIET)
def convert(model: str, weights, seed, out: Path | None, force, as_json, quiet) -> None:
    """Convert MODEL's weights to an orbax checkpoint, or back to PyTorch if --out ends in .pth, .pt or .safetensors."""
    screen = Screen(quiet, as_json)
    network = load(model, weights=weights or "lpips", seed=seed)
    out = out or Path(f"{model}.orbax")
    if out.suffix in (".pth", ".pt", ".bin", ".safetensors"):
        if out.exists() and not force:
            raise InputError(f"{str(out)!r} exists; --force overwrites it")
        out.parent.mkdir(parents=True, exist_ok=True)
        write_state(out, network.state_dict())
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        manifest = checkpoint_manifest(network)
        save_checkpoint(out, network.variables, network.extras, manifest, overwrite=force and is_checkpoint(out))
    screen.say(f"{model} with weights {_told(weights, 'lpips')} in {out}")
    if network.missing:
        screen.say(f"the source lacks {len(network.missing)} arrays: {', '.join(network.missing)}")
    screen.json({"model": model, "out": str(out), "sha256": network.sha256, "missing": list(network.missing)})


@main.command()
@click.argument("model", required=False)
@_options(JSON)
def info(model: str | None, as_json) -> None:
    """List the models, or the layers of MODEL."""
    screen = Screen(False, as_json)
    if model is None:
        screen.table([[name] for name in ARCHITECTURES], ("model",))
        screen.json({"models": list(ARCHITECTURES)})
        return
    layers = [
        {
            "layer": layer.name,
            "kind": layer.kind,
            "weight": [layer.outputs, layer.inputs, *(layer.window if layer.kind == "conv" else ())],
            "kernels": layer.kernels,
            "output": [layer.outputs, *(layer.positions if layer.kind == "conv" else ())],
        }
        for layer in describe_architecture(model).layers.values()
    ]
    cells = [[" x ".join(map(str, v)) if isinstance(v, list) else v for v in layer.values()] for layer in layers]
    screen.table(cells, ("layer", "kind", "weight (O x I x h x w)", "kernels", "output (O x H x W)"))
    screen.json({"model": model, "layers": layers})


@dataclass(frozen=True)
class Screen:
    """Tables and words on stdout, progress on stderr; with --json one document instead, with --quiet nothing."""

    quiet: bool
    as_json: bool

    def say(self, text: str) -> None:
        if not (self.quiet or self.as_json):
            click.echo(text)

    def json(self, document: dict[str, Any]) -> None:
        if self.as_json:
            click.echo(json.dumps(document, indent=2))

    def table(self, rows: list[list[Any]], columns: tuple[str, ...]) -> None:
        if self.quiet or self.as_json:
            return
        table = Table()
        for column, first in zip(columns, rows[0], strict=True):
            table.add_column(column, justify="left" if isinstance(first, str) else "right", overflow="fold")
        for row in rows:
            table.add_row(*map(_cell, row))
        Console(width=None if sys.stdout.isatty() else 120, markup=False).print(table)

    @contextlib.contextmanager
    def progress(self, total: int, images: int) -> Iterator[Callable[[int], None]]:
        """Yields a function that is told how many features times images were done."""
        if self.quiet:
            yield lambda done: None
            return
        speed = TextColumn("{task.fields[speed]}")
        columns = (TextColumn("scoring"), BarColumn(), speed, TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=total, speed="")

            def advance(done: int) -> None:
                bar.advance(task, done)
                rate = (bar.tasks[0].speed or 0) / images
                bar.update(task, speed=f"{rate:.2f} features/s" if rate else "")

            yield advance


def _cell(value: Any) -> str:
    if value is None:
        return "constant"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _label(row: dict[str, Any]) -> str:
    feature = row["feature"]
    position = feature["position"]
    at = ",".join(map(str, position)) if isinstance(position, list) else position
    return f"{feature['layer']}:{feature.get('channel', feature.get('name'))}" + (f"@{at}" if at else "")


def _numbers(name: str, text: str, kind: type) -> list:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--{name} is {text!r}; expected numbers, comma-separated") from None


def _told(given: str | None, default: str) -> str:
    return given or f"{default} (the default)"


def _images(source: str, model: Model, resize: str, strict: bool) -> Images:
    if source == "array":
        raise InputError("the circuit was made on an array in memory; name images to judge it on with --images")
    return read_images(source, model, resize=resize, strict=strict)


def _model_of(circuit: Circuit, weights: str | None) -> Model:
    """The circuit's model; with its own weights, unless others are named."""
    recorded = circuit.manifest["weights"]
    model = load(circuit.manifest["model"], weights=weights or recorded["source"])
    if weights is None and model.sha256 != recorded["sha256"]:
        raise InputError(
            f"the weights {recorded['source']!r} are no longer the circuit's; --weights takes them as they are"
        )
    return model
