"""Pages about circuits: `diagram` draws them, `report` puts what is known of them on one page."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import click

from jaxcircuits.atlas.reading import Atlas
from jaxcircuits.circuit import Circuit
from jaxcircuits.cli import common
from jaxcircuits.cli.common import JSON, LEVEL, OTHER_RESIZE, OUT, QUIET, STRICT, Command, options
from jaxcircuits.cli.recorded import network_of, pictures_of
from jaxcircuits.cli.screen import Screen
from jaxcircuits.data import read_images
from jaxcircuits.diagram import FORMATS, check_format, diagram
from jaxcircuits.diagram.graph import MOST
from jaxcircuits.diagram.pictures import COUNT, KINDS, MADE
from jaxcircuits.errors import InputError
from jaxcircuits.files import check_writable, write_whole
from jaxcircuits.loading import load
from jaxcircuits.report import entry, page

MOST_OPTION = click.option(
    "--most", type=common.WHOLE, default=MOST, show_default=True,
    help="Kernels that a diagram draws at the most: the best, or without scores those with the largest weights.",
)  # fmt: skip
PICTURES = click.option(
    "--pictures", "carried", type=click.Choice(KINDS), default="patches", show_default=True,
    help="What channels show: patches of the images that drive them in the circuit; features: pictures made by "
    "gradient ascent, before the patches.",
)  # fmt: skip
MADE_OPTION = click.option(
    "--made", type=common.WHOLE, default=MADE, show_default=True,
    help="Channels that --pictures features makes pictures of: the feature and those that the best kernels lead to.",
)  # fmt: skip


@click.command("diagram", cls=Command)
@click.argument("circuits", nargs=-1, required=True, metavar="CIRCUIT...")
@options(common.OTHER_WEIGHTS, common.OTHER_IMAGES, OTHER_RESIZE, STRICT)
@click.option(
    "--format", "formats", default="html,svg", show_default=True, help=f"Of {', '.join(FORMATS)}; with commas."
)
@options(MOST_OPTION, PICTURES, MADE_OPTION)
@click.option(
    "--patches", type=click.IntRange(0), default=COUNT, show_default=True,
    help="Patches of each channel; 0 for none.",
)  # fmt: skip
@options(OUT, JSON, QUIET)
def draw(
    circuits: tuple[str, ...], weights, images, resize, strict, formats: str, most, carried, made,
    patches, out: Path, as_json, quiet,
) -> None:  # fmt: skip
    """Draw CIRCUIT files: STEM.html, a page without a server, and STEM.svg.

    Channels are nodes, kernels on a path from the pixels to the feature are edges: orange where they excite, blue where
    they inhibit, wider with their score. Circuits that were extracted with --scores can be seen denser and sparser.
    """
    screen = Screen(quiet, as_json)
    kinds = list(dict.fromkeys(kind.strip().lower() for kind in formats.split(",")))
    if unknown := [kind for kind in kinds if kind not in FORMATS]:
        raise InputError(f"--format is {formats!r}; {unknown[0]!r} is none of {', '.join(FORMATS)}")
    for kind in kinds:
        check_format(kind)  # before anything is drawn
    opened = [(_stem(path), Circuit.load(path)) for path in circuits]
    places = _places(out, [stem for stem, _ in opened], kinds)
    model_of, images_of = functools.cache(load), functools.cache(read_images)
    written = []
    with screen.progress("drawing", len(opened), of="circuits", each=1) as progress:
        for (_, circuit), paths in zip(opened, places, strict=True):
            model = network_of(circuit, weights, model_of)
            looked = patches and carried != "none" and _has(circuit, images)
            shown = pictures_of(circuit, images, resize, model, strict, images_of) if looked else None
            drawing = diagram(model, circuit, shown, most=most, pictures=carried, patches=patches, made=made)
            for kind, path in zip(kinds, paths, strict=True):
                write_whole(path, drawing.to(kind))
                written.append(str(path))
            progress(1)
    for path in written:
        screen.say(path)
    screen.json({"files": written})


@click.command(cls=Command)
@click.argument("circuits", nargs=-1, required=True, metavar="CIRCUIT...")
@options(common.OTHER_WEIGHTS, common.OTHER_IMAGES, OTHER_RESIZE, STRICT)
@click.option("--atlas", type=click.Path(path_type=Path), help="Take circuits of this atlas, whose features are named.")
@options(*LEVEL, MOST_OPTION, PICTURES, MADE_OPTION, OUT, JSON, QUIET)
def report(
    circuits: tuple[str, ...], weights, images, resize, strict, atlas, keep, kernels, most, carried, made, out: Path,
    as_json, quiet,
) -> None:  # fmt: skip
    """Put CIRCUIT files side by side on one HTML page: diagram, r over keep, what drives the feature most, kernels by
    layer, manifest. One circuit's is STEM.report.html, that of several report.html. With --atlas, CIRCUIT is a feature.
    """
    screen = Screen(quiet, as_json)
    if atlas is None and (keep, kernels) != (None, None):
        raise InputError("--keep and --kernels choose a level of an atlas; expected --atlas beside them")
    check_format("html")
    level = {"keep": keep, "kernels": kernels}
    opened = [Circuit.load(c) if atlas is None else Atlas(atlas).circuit(c, **level) for c in circuits]
    stem = _stem(circuits[0] if atlas is None else opened[0].stem)
    path = out / (f"{stem}.report.html" if len(circuits) == 1 else "report.html")
    check_writable(path)
    model_of, images_of, entries = functools.cache(load), functools.cache(read_images), []
    with screen.progress("judging", len(opened), of="circuits", each=1) as progress:
        for circuit in opened:
            model = network_of(circuit, weights, model_of)
            shown = pictures_of(circuit, images, resize, model, strict, images_of) if _has(circuit, images) else None
            entries.append(entry(model, circuit, shown, most=most, pictures=carried, made=made))
            progress(1)
    write_whole(path, page(entries).encode())
    screen.say(str(path))
    screen.json({"files": [str(path)]})


def _stem(path: str) -> str:
    return Path(path).name.removesuffix(".safetensors")


def _has(circuit: Circuit, images: str | None) -> bool:
    """Whether there are images to look at; those that were an array in memory are gone."""
    return images is not None or circuit.manifest["images"]["source"] != "array"


def _places(out: Path, stems: Sequence[str], kinds: Sequence[str]) -> list[list[Path]]:
    """A path for each circuit and format; an InputError if two are one or if one cannot be written."""
    if twice := [stem for stem in stems if stems.count(stem) > 1]:
        raise InputError(f"two circuits would be drawn to the same {str(out / twice[0])!r}; draw them one by one")
    places = [[out / f"{stem}.{kind}" for kind in kinds] for stem in stems]
    for path in (path for paths in places for path in paths):
        check_writable(path)
    return places
