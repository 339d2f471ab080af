"""`import`: masks and scores that other programs saved become circuit files."""

from __future__ import annotations

from pathlib import Path

import click

from jaxcircuits.cli import common
from jaxcircuits.cli.common import JSON, OUT, OVERWRITE, QUIET, RESIZE, STRICT, Command, numbers, options
from jaxcircuits.cli.screen import Screen
from jaxcircuits.errors import InputError
from jaxcircuits.pytorch.importing import are_masks, circuits_of_scores, read_kernels, read_masks, read_scores
from jaxcircuits.spelling import parse


@click.command("import", cls=Command)
@click.argument("file")
@click.argument("model")
@click.argument("feature")
@options(common.WEIGHTS, common.TRANSFORM, common.IMAGES, RESIZE, STRICT, common.OBJECTIVE)
@click.option("--keep", help="Of scores: fractions of the relevant kernels to keep, comma-separated.")
@click.option("--kernels", help="Of scores: numbers of kernels to keep, instead of --keep or beside it.")
@click.option(
    "--criterion", default="imported", show_default=True, callback=common.not_empty,
    help="What the circuits' names and manifests call the way they were found.",
)  # fmt: skip
@options(OUT, OVERWRITE, JSON, QUIET)
def import_(
    file: str, model: str, feature: str, weights, transform_input, images, resize, strict, objective, keep, kernels,
    criterion, out: Path, force, as_json, quiet,
) -> None:  # fmt: skip
    """Make circuit files of the masks or scores in FILE, of MODEL's FEATURE, and judge them on the images.

    FILE was saved with torch.save: a dictionary of tensors (outputs, inputs) by module name, as the paper's program has
    them, or a list of them in the order of the convolutions. Zeros and ones are a mask; other numbers are scores, and
    take --keep or --kernels. No code in FILE is run.
    """
    screen = Screen(quiet, as_json)
    network = common.network_given(model, weights, transform_input)
    wanted = parse(feature, network.layers, objective=objective)
    arrays = read_kernels(file, network)
    masks = are_masks(arrays)
    if masks != (keep is None and kernels is None):
        what = "a mask, which keeps what it keeps" if masks else "scores: give --keep or --kernels"
        raise InputError(f"{file!r} holds {what}")
    pictures = common.images_given(images, network, resize, strict)
    if masks:
        found = [read_masks(arrays, network, wanted, criterion=criterion, images=pictures)]
    else:
        amounts = [{"keep": k} for k in numbers("keep", keep, float)] if keep is not None else []
        amounts += [{"kernels": k} for k in numbers("kernels", kernels, int)] if kernels is not None else []
        scores = read_scores(arrays, network, wanted, criterion=criterion)
        found = circuits_of_scores(network, wanted, scores, amounts, images=pictures)
    paths = [out / model / f"{circuit.stem}.safetensors" for circuit in found]
    common.free_places(paths, [c.manifest for c in found], force=force, otherwise="import them one by one")
    for path, circuit in zip(paths, found, strict=True):
        circuit.save(path, force=force)
    screen.say(common.heading(model, weights, len(pictures), images) + "\n")
    columns = ("relevant", "kept", "effective", "correlation")
    rows = [[str(path), *(circuit.manifest[c] for c in columns)] for path, circuit in zip(paths, found, strict=True)]
    screen.table(("circuit", *columns[:-1], "r"), rows)
    screen.json({"circuits": [{"circuit": str(p), **c.manifest} for p, c in zip(paths, found, strict=True)]})
