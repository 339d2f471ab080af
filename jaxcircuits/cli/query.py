"""`query`: what an atlas answers, as tables, JSON and plots."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jaxcircuits import plots
from jaxcircuits.atlas.reading import Atlas
from jaxcircuits.circuit import finite, tame
from jaxcircuits.cli import common
from jaxcircuits.cli.common import JSON, LEVEL, OUT, OVERWRITE, QUIET, Group, one_sentence, options
from jaxcircuits.cli.screen import Screen
from jaxcircuits.errors import InputError
from jaxcircuits.files import check_writable

if TYPE_CHECKING:
    import pandas

MOST = click.option("--most", type=click.IntRange(min=1), default=20, show_default=True, help="How many lines.")
PLOT = click.option("--plot", type=click.Path(path_type=Path), help="Draw it into this PNG.")


@click.group(cls=Group, invoke_without_command=True)
@click.argument("directory", type=click.Path(path_type=Path))
@click.pass_context
def query(context: click.Context, directory: Path) -> None:
    """Ask the atlas in DIRECTORY a question; the one of `statistics` if none is named."""
    with one_sentence():
        context.obj = atlas = Atlas(directory)
        chunks = sum(1 for _ in atlas.plan)
        there = sum(len(atlas.there(g)) for g in range(len(atlas.plan.groups)))
        if there < chunks:
            click.echo(f"Warning: {there} of {chunks} chunks are there; answers are of these", err=True)
        if context.invoked_subcommand is None:
            context.invoke(statistics)


@query.command("statistics", short_help="Each layer at each level: r, kernels, how much is used.")
@options(PLOT, JSON, QUIET)
@click.pass_obj
def statistics(atlas: Atlas, plot: Path | None, as_json, quiet) -> None:
    """How faithful and how large the circuits of each layer are at each level; --plot draws the mean r over them."""
    plot = plot and _png(plot)
    screen, found = Screen(quiet, as_json), _there(atlas, atlas.statistics())
    _print(screen, found, len(found))
    if plot:
        r = found.pivot(index="layer", columns=found.columns[1], values="mean").loc[list(found["layer"].unique())]
        title = f"{atlas.manifest['model']}, mean r"
        amounts, how = list(r.columns), {"xlabel": str(found.columns[1]), "what": "layers"}
        plots.curves(plot, list(r.index), amounts, r.to_numpy(), title=title, **how)
        screen.say(f"\nplot in {plot}")


@query.command("circuit", short_help="Write a feature's circuit to a file.")
@click.argument("feature")
@options(*LEVEL, OUT, OVERWRITE, JSON, QUIET)
@click.pass_obj
def circuit(atlas: Atlas, feature: str, keep, kernels, out: Path, force, as_json, quiet) -> None:
    """Write the circuit of FEATURE (features.3:17) to a file, as `extract` would."""
    screen, found = Screen(quiet, as_json), atlas.circuit(feature, keep=keep, kernels=kernels)
    path = out / tame(atlas.manifest["model"]) / f"{found.stem}.safetensors"
    found.save(path, force=force)
    screen.say(str(path))
    screen.json({"circuit": str(path), **found.manifest})


@query.command("table", short_help="All circuits, a line each.")
@options(JSON, QUIET)
@click.option("--most", type=click.IntRange(min=1), help="How many lines; all if not given.")
@click.pass_obj
def table(atlas: Atlas, most, as_json, quiet) -> None:
    """All circuits: feature, level, relevant, kept and effective kernels, r."""
    found = atlas.table()
    _print(Screen(quiet, as_json), found, most or len(found))


@query.command("users", short_help="Which features use a kernel, or a channel's kernels.")
@click.argument("kernel", metavar="LAYER:OUTPUT[,INPUT]")
@options(*LEVEL, MOST, JSON, QUIET)
@click.pass_obj
def users(atlas: Atlas, kernel: str, keep, kernels, most, as_json, quiet) -> None:
    """Which features use the kernel from channel INPUT to OUTPUT of LAYER, or any that makes its channel OUTPUT."""
    parts = re.fullmatch(r"(.+):(\d{1,9})(?:,(\d{1,9}))?", kernel)
    if not parts:
        raise InputError(f"{kernel!r} is no kernel; expected LAYER:OUTPUT,INPUT or, for a channel, LAYER:OUTPUT")
    where = parts[1], int(parts[2]), None if parts[3] is None else int(parts[3])
    _print(Screen(quiet, as_json), atlas.users(*where, keep=keep, kernels=kernels), most)


@query.command("shared", short_help="A layer's kernels by how many features use them.")
@click.argument("layer")
@click.option("--never", is_flag=True, help="Only those that no feature uses.")
@options(*LEVEL, MOST, PLOT, JSON, QUIET)
@click.pass_obj
def shared(atlas: Atlas, layer: str, never, keep, kernels, most, plot: Path | None, as_json, quiet) -> None:
    """The kernels of LAYER by how many features use them, the most shared first."""
    plot = plot and _png(plot)
    screen, found = Screen(quiet, as_json), atlas.sharing(layer, keep=keep, kernels=kernels)
    never_used = (found["users"] == 0).to_numpy()
    unused = int(never_used.sum())
    if plot:
        plots.usage(plot, found["users"].to_numpy(), title=f"{atlas.manifest['model']}, kernels of {layer}")
    _print(screen, found.loc[never_used] if never else found, most)
    screen.say(f"\n{unused} of {len(found)} kernels are used by none" + (f", plot in {plot}" if plot else ""))


@query.command("iou", short_help="How much two circuits overlap.")
@click.argument("a", metavar="FEATURE")
@click.argument("b", metavar="FEATURE")
@options(*LEVEL, JSON, QUIET)
@click.pass_obj
def iou(atlas: Atlas, a: str, b: str, keep, kernels, as_json, quiet) -> None:
    """Intersection over union of the circuits of two FEATUREs."""
    screen, value = Screen(quiet, as_json), atlas.iou(a, b, keep=keep, kernels=kernels)
    screen.say(f"{value:.4f}")
    screen.json({"features": [a, b], "iou": finite(value)})


@query.command("matrix", short_help="The overlaps of all circuits of a layer, or of all.")
@click.argument("layer", required=False)
@click.option("--csv", type=click.Path(path_type=Path), help="Write the matrix to this file.")
@options(*LEVEL, PLOT, JSON, QUIET)
@click.pass_obj
def matrix(atlas: Atlas, layer, csv: Path | None, keep, kernels, plot: Path | None, as_json, quiet) -> None:
    """Intersection over union of each two circuits of LAYER, or of the whole atlas."""
    from jaxcircuits.files import write_whole

    if csv:
        check_writable(csv)
    plot = plot and _png(plot)
    screen, found = Screen(quiet, as_json), _there(atlas, atlas.iou_matrix(layer, keep=keep, kernels=kernels))
    if csv:
        write_whole(csv, found.to_csv(float_format="%.5g").encode())
    if plot:
        plots.matrix(plot, found.to_numpy(), list(found.index), title=f"{atlas.manifest['model']}, IoU of circuits")
    values = found.to_numpy()
    others = values[~_eye(len(values))]
    mean = float(others[others == others].mean()) if len(others) else 1.0
    files = [str(path) for path in (csv, plot) if path]
    screen.say(f"{len(found)} circuits, mean IoU of two {mean:.4f}" + "".join(f"\n{path}" for path in files))
    screen.json({"features": list(found.index), "mean": mean, "files": files})


@query.command("nearest", short_help="The circuits nearest to a feature's.")
@click.argument("feature")
@click.option("--layer", help="Among this layer's features.")
@options(*LEVEL, MOST, JSON, QUIET)
@click.pass_obj
def nearest(atlas: Atlas, feature: str, layer, keep, kernels, most, as_json, quiet) -> None:
    """The features whose circuits overlap most with FEATURE's."""
    _print(Screen(quiet, as_json), atlas.nearest(feature, most, layer=layer, keep=keep, kernels=kernels), most)


@query.command("clusters", short_help="Features with alike circuits.")
@click.argument("layer", required=False)
@click.option("--number", type=common.WHOLE, help="How many clusters, at most.")
@click.option("--overlap", type=click.FloatRange(0, 1), help="Or the mean IoU down to which clusters are joined.")
@options(*LEVEL, JSON, QUIET)
@click.pass_obj
def clusters(atlas: Atlas, layer, number, overlap, keep, kernels, as_json, quiet) -> None:
    """Groups of features of LAYER, or of all, whose circuits are alike."""
    how: dict[str, Any] = {"number": 10 if number is None and overlap is None else number, "overlap": overlap}
    found = atlas.clusters(layer, **how, keep=keep, kernels=kernels)
    _print(Screen(quiet, as_json), found, len(found), undefined="alone")


def _there(atlas: Atlas, found: pandas.DataFrame) -> pandas.DataFrame:
    """What was found, or an InputError if that is nothing."""
    if not len(found):
        raise InputError(f"the atlas in {str(atlas.directory)!r} has no chunk of that yet")
    return found


def _png(path: Path) -> Path:
    if path.suffix.lower() != ".png":
        raise InputError(f"--plot is {str(path)!r}; expected a file that ends in .png")
    check_writable(path)
    return path


def _eye(size: int):
    import numpy as np

    return np.eye(size, dtype=bool)


def _print(screen: Screen, found: pandas.DataFrame, most: int, *, undefined: str | None = None) -> None:
    """The first rows as a table, all of them as JSON; None is a constant circuit's r, or `undefined`."""
    records = json.loads(found.to_json(orient="records") or "[]")
    screen.json({"rows": records})
    if not records:
        screen.say("none")
        return
    rows = [[undefined if value is None else value for value in record.values()] for record in records[:most]]
    screen.table(list(found.columns), rows)
    if len(records) > most:
        screen.say(f"... and {len(records) - most} more")
