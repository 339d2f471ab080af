"""`pictures`: what drives features, by gradient ascent and in an image set, as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from jaxcircuits.circuit import Circuit, feature_stem, finite
from jaxcircuits.cli import common
from jaxcircuits.cli.common import JSON, OUT, QUIET, RESIZE, SEED, STRICT, Command, options, told
from jaxcircuits.cli.recorded import network_of, pictures_of
from jaxcircuits.cli.screen import Screen
from jaxcircuits.data import read_images
from jaxcircuits.errors import MOST, InputError
from jaxcircuits.files import check_writable, write_all
from jaxcircuits.loading import load
from jaxcircuits.manifest import identity
from jaxcircuits.pictures import png, sheet, top_patches, visualise
from jaxcircuits.pictures.patches import COUNT
from jaxcircuits.pictures.visualise import OBJECTIVES, STEPS
from jaxcircuits.spelling import parse

SMALL = 96  # pictures of fewer pixels are enlarged


@click.command(cls=Command)
@click.argument("model")
@click.argument("features", nargs=-1, required=True, metavar="FEATURE...")
@options(common.WEIGHTS, common.TRANSFORM, common.IMAGES, RESIZE, STRICT)
@click.option(
    "--circuit",
    type=click.Path(path_type=Path),
    help="Look at the features within this circuit, by default with its weights and images.",
)
@click.option(
    "--objective", type=click.Choice(OBJECTIVES), default="middle", show_default=True,
    help="What is driven: the feature in the middle of its map, or its mean.",
)  # fmt: skip
@click.option("--steps", type=click.IntRange(0, MOST), default=STEPS, show_default=True, help="0 for patches only.")
@click.option(
    "--count", type=click.IntRange(0, MOST), default=COUNT, show_default=True, help="Patches; 0 for made pictures only."
)
@options(common.CHUNK, OUT, SEED, JSON, QUIET)
def pictures(
    model: str, features: tuple[str, ...], weights, transform_input, images, resize, strict, circuit: Path | None,
    objective, steps, count, chunk, out: Path, seed, as_json, quiet,
) -> None:  # fmt: skip
    """Draw what drives MODEL's FEATUREs most.

    Writes OUT/MODEL/pictures/STEM.png, made by gradient ascent, and STEM.patches.png, the parts of the images that
    drive the feature most, the strongest first; both of what the feature sees. A feature whose gradient is zero in
    every step has no picture of the first kind.
    """
    screen = Screen(quiet, as_json)
    if not steps and not count:
        raise InputError("--steps 0 and --count 0 leave nothing to draw")
    opened = _opened(circuit, model, transform_input) if circuit else None
    if opened is None:
        network, within = common.network_given(model, weights, transform_input, seed), {}
        source = common.images_given(images, network, resize, strict) if count else None
    else:
        network, within = network_of(opened, weights, load), {"masks": opened.masks, "offsets": opened.offsets}
        source = pictures_of(opened, images, resize, network, strict, read_images) if count else None
    parsed = [parse(text, network.layers) for text in features]
    folder, ending = out / model / "pictures", f".in.{circuit.stem}" if circuit else ""
    stems = [f"{feature_stem({'feature': identity(one)})}{ending}" for some in parsed for one in some]
    if twice := [stem for stem in stems if stems.count(stem) > 1]:
        raise InputError(f"two pictures would be written to {str(folder / twice[0])!r}; draw them one by one")
    for stem in stems:
        check_writable(folder / f"{stem}.png")
    files: dict[str, bytes] = {}
    rows = [{"feature": label} for some in parsed for label in some.labels]
    if steps:
        with screen.progress("drawing", len(stems) * steps, of="features", each=steps) as progress:
            asked: Any = {"objective": objective, "steps": steps, "seed": seed, "chunk": chunk, "progress": progress}
            made = [visualise(network, some, **within, **asked) for some in parsed]
        drawn = [one for v in made for one in zip(v.pictures, v.values, v.unmoved, strict=True)]
        for stem, row, (picture, value, unmoved) in zip(stems, rows, drawn, strict=True):
            row |= {"picture": None if unmoved else str(folder / f"{stem}.png"), "value": finite(value)}
            if not unmoved:
                files[f"{stem}.png"] = png(_enlarged(picture[None]))
    if source is not None:
        with screen.progress("looking", len(stems) * len(source), of="images", each=len(stems)) as progress:
            found = [top_patches(network, source, some, count=count, **within, progress=progress) for some in parsed]
        best = [(p.pictures[f], p.values[f], p.names[f]) for p in found for f in range(len(p.labels))]
        for stem, row, (patches, values, names) in zip(stems, rows, best, strict=True):
            files[f"{stem}.patches.png"] = png(_enlarged(patches))
            row |= {"patches": str(folder / f"{stem}.patches.png"), "top": [finite(v) for v in values]}
            row |= {"images": list(names)}
    if files:
        write_all({folder / name: content for name, content in files.items()})

    default = ("lpips", "photos") if opened is None else ("the circuit's", "the circuit's images")
    screen.say(f"{model} with weights {told(weights, default[0])}{f', in {circuit}' if circuit else ''}\n")
    columns = {"value": "on its picture", "top": f"on the best of {told(images, default[1])}"}
    shown = [column for column in columns if column in rows[0]]
    cells = [[row["feature"], *(row[c][0] if c == "top" else row[c] for c in shown)] for row in rows]
    screen.table(("feature", *(columns[c] for c in shown)), cells)
    if grey := [row["feature"] for row in rows if row.get("picture", "") is None]:
        screen.say(f"\nno picture of {', '.join(grey)}: gradient ascent found no gradient")
    screen.say(f"\n{len(files)} pictures in {folder}")
    screen.json({"features": rows})


def _opened(path: Path, model: str, transform_input: bool | None) -> Circuit:
    """The circuit, or an InputError if it is another network's."""
    circuit = Circuit.load(path)
    if circuit.manifest["model"] != model:
        raise InputError(f"{str(path)!r} is a circuit of {circuit.manifest['model']!r}, not of {model!r}")
    if transform_input is not None:
        raise InputError("a circuit says itself whether its network normalises its images again")
    return circuit


def _enlarged(pictures: np.ndarray) -> np.ndarray:
    """On one sheet; small ones larger, pixel by pixel."""
    return sheet(pictures, scale=max(1, -(-SMALL // pictures.shape[1])))
