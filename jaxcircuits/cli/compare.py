"""`compare`: the criteria side by side, on images that have not scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jaxcircuits.circuit import feature_stem, finite
from jaxcircuits.cli import common
from jaxcircuits.cli.common import JSON, OUT, OVERWRITE, QUIET, RESIZE, SEED, STRICT, Command, numbers, options, told
from jaxcircuits.cli.screen import Screen
from jaxcircuits.compare import compare as compare_criteria
from jaxcircuits.compare import question
from jaxcircuits.comparison import Comparison, free_paths
from jaxcircuits.criteria import CRITERIA
from jaxcircuits.faithfulness import KEEPS
from jaxcircuits.granularity import GRANULARITIES
from jaxcircuits.options import Options, able
from jaxcircuits.spelling import parse

OTHER_HALF = {"photos:a": "photos:b", "photos:b": "photos:a"}
LEVELS = ",".join(f"{keep:g}" for keep in KEEPS)


@click.command(cls=Command)
@click.argument("model")
@click.argument("features", nargs=-1, required=True, metavar="FEATURE...")
@options(common.WEIGHTS, common.TRANSFORM)
@click.option("--images", callback=common.not_empty, help="Those that score, as for extract.  [default: photos:a]")
@click.option(
    "--test-images", callback=common.not_empty,
    help="Those that judge.  [default: the other half of photos:a or photos:b, else those that score]",
)  # fmt: skip
@options(RESIZE, STRICT)
@click.option("--criteria", help=f"Comma-separated.  [default: of {','.join(CRITERIA)} those that can]")
@options(common.ABSOLUTE, common.OBJECTIVE)
@options(common.keep_option(LEVELS))
@click.option(
    "--granularity", type=click.Choice(GRANULARITIES), default="kernel", show_default=True,
    help="What is scored, kept and counted.",
)  # fmt: skip
@options(common.ABLATION, common.STEPS, common.PRECISION, common.CHUNK, common.BATCH, OUT, OVERWRITE, SEED, JSON, QUIET)
def compare(
    model: str, features: tuple[str, ...], weights, transform_input, images, test_images, resize, strict, criteria,
    absolute, objective, keep, granularity, ablation, steps, precision, chunk, batch, out: Path, force, seed, as_json,
    quiet,
) -> None:  # fmt: skip
    """Compare the criteria on MODEL's FEATUREs: score on some images, judge on others.

    Writes OUT/MODEL/compare/STEM.csv, .md, .png and .json, STEM being the first feature (and _and_N_more): r with its
    interval for each feature, criterion and keep, averages by layer, which criterion wins where, time and memory.
    """
    screen = Screen(quiet, as_json)
    scoring, judging = _sets(images, test_images)
    network = common.network_given(model, weights, transform_input, seed)
    parsed = [parse(text, network.layers, objective=objective) for text in features]
    pictures, tests = (common.images_given(source, network, resize, strict) for source in (scoring, judging))
    keeps = tuple(dict.fromkeys(KEEPS if keep is None else numbers("keep", keep, float)))
    asked: Any = {"test_images": tests, "keeps": keeps, "ablation": ablation}
    how: Any = {"absolute": absolute, "granularity": granularity, "steps": steps, "seed": seed}
    how |= {"precision": precision, "chunk": chunk, "batch": batch}
    given = able(absolute, granularity) if criteria is None else [name.strip() for name in criteria.split(",")]
    names = list(dict.fromkeys(given))
    _, manifest = question(network, pictures, parsed, [Options(name, **how) for name in names], **asked)
    first, more = manifest["features"][0], len(manifest["features"]) - 1
    stem = out / model / "compare" / (feature_stem({"feature": first}) + (f"_and_{more}_more" if more else ""))
    free_paths(stem, manifest, force=force)  # not after hours

    screen.say(
        f"{model} with weights {told(weights, 'lpips')}, scored on {len(pictures)} images: {told(images, scoring)}, "
        f"judged on {len(tests)}: {told(test_images, judging)}\n"
    )
    total = len(manifest["features"]) * len(manifest["criteria"])
    with screen.progress("comparing", total, of="features", each=len(manifest["criteria"])) as progress:
        found = compare_criteria(network, pictures, parsed, criteria=names, progress=progress, **asked, **how)
    paths = found.save(stem, force=force)
    _print(screen, found)
    screen.say("\n" + "\n".join(map(str, paths)))
    screen.json({**found.document(), "files": [str(path) for path in paths]})


def _sets(images: str | None, test_images: str | None) -> tuple[str, str]:
    """The images that score and those that judge, which share none if nothing else is asked for."""
    images = images or OTHER_HALF.get(test_images or "", "photos:a")
    return images, test_images or OTHER_HALF.get(images, images)


def _print(screen: Screen, found: Comparison) -> None:
    if found.constant:
        screen.say(f"{found.constant} circuits are constant: they have no r, and count as 0 in these means\n")
    for name in found.averages:
        r, _ = found.shown(name)
        screen.say(f"r, {found.heading(name)}\n")
        lines = [[f"{k:g}", *(finite(float(value)) for value in r[:, i])] for i, k in enumerate(found.keeps)]
        screen.table(("keep", *found.criteria), lines)
        screen.say("")
    wins = [
        [row["layer"], f"{row['keep']:g}", row["criterion"] or "none", row["r"], f"{row['sure']:.0%}"]
        for row in found.wins()
    ]
    screen.table(("layer", "keep", "best", "r", "of resamples"), wins)
    screen.say("")
    costs = [
        [row["layer"], row["criterion"], row["seconds"], row["compiling"], _megabytes(row["peak_bytes"])]
        for row in found.cost_rows()
    ]
    screen.table(("layer", "criterion", "s/feature", "s compiling", "peak memory"), costs)


def _megabytes(number: int | None) -> str:
    return "" if number is None else f"{number / 1e6:.0f} MB"
