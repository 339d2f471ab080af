"""`subcircuits`: the circuits of groups of a feature's images, how far they differ, and a map of the images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import numpy as np

from jaxcircuits.circuit import Circuit, feature_stem, finite
from jaxcircuits.cli import common
from jaxcircuits.cli.common import JSON, OUT, OVERWRITE, QUIET, RESIZE, SEED, STRICT, Command, options
from jaxcircuits.cli.screen import Screen
from jaxcircuits.criteria import OVER_IMAGES
from jaxcircuits.errors import MOST, InputError
from jaxcircuits.files import check_writable, write_whole
from jaxcircuits.manifest import identity
from jaxcircuits.packages import installed
from jaxcircuits.spelling import NUMBER, parse
from jaxcircuits.subfeatures import (
    ImageScores,
    Parts,
    at_peak,
    by_folder,
    circuits,
    clusters,
    image_scores,
    judge,
    map_page,
    need_umap,
    profiles,
    responses,
    separate,
    silhouette,
    trajectories,
)
from jaxcircuits.subfeatures.parts import NULLS
from jaxcircuits.subfeatures.trajectories import FEWEST, NEIGHBOURS


@click.command(cls=Command)
@click.argument("model")
@click.argument("feature")
@options(common.WEIGHTS, common.TRANSFORM, common.IMAGES, RESIZE, STRICT)
@click.option(
    "--groups", default="by-folder", show_default=True,
    help="by-folder (of crops of the photos, the photograph), cluster:K (by what their circuits use) or each.",
)  # fmt: skip
@click.option(
    "--criterion", type=click.Choice(list(OVER_IMAGES)), default="snip", show_default=True,
    help="How kernels are scored.",
)  # fmt: skip
@options(common.OBJECTIVE)
@click.option("--keep", type=float, help="Fraction of the relevant kernels to keep.  [default: 0.05]")
@click.option("--kernels", type=int, help="Number of kernels to keep, instead of --keep.")
@options(common.GRANULARITY)
@click.option(
    "--nulls", type=click.IntRange(0, MOST), default=NULLS, show_default=True, help="Random groups of the same sizes."
)
@click.option("--map/--no-map", "mapped", default=True, help="Write the trajectory map.  [default: --map]")
@click.option(
    "--neighbours", type=click.IntRange(min=2), default=NEIGHBOURS, show_default=True,
    help="On which an image's place in the map depends.",
)  # fmt: skip
@options(common.PRECISION, OUT, OVERWRITE, SEED, JSON, QUIET)
def subcircuits(
    model: str, feature: str, weights, transform_input, images, resize, strict, groups, criterion, objective, keep,
    kernels, granularity, nulls, mapped, neighbours, precision, out: Path, force, seed, as_json, quiet,
) -> None:  # fmt: skip
    """Find the circuits of groups of images for one FEATURE of MODEL, and how far they differ.

    Every image is scored by itself, at its strongest position in the full network unless FEATURE has a position. Writes
    a circuit for each group to OUT/MODEL/STEM.GROUP.CRITERION.keepK.safetensors, and OUT/MODEL/STEM.map.html, which
    shows the images by what their circuits use.
    """
    screen = Screen(quiet, as_json)
    number = _number_of_clusters(groups)
    if keep is not None and kernels is not None:
        raise InputError("give either --keep or --kernels")
    if number is not None:
        installed("sklearn", "a clustering")
    if mapped:
        need_umap()
        installed("jinja2", "a page")
    network = common.network_given(model, weights, transform_input, seed)
    features = parse(feature, network.layers, objective=objective)
    if len(features) != 1:
        raise InputError(f"{feature!r} are {len(features)} features; expected one")
    features = at_peak(features)
    pictures = common.images_given(images, network, resize, strict)
    if number is not None and number > len(pictures):
        raise InputError(f"--groups is {groups!r}, but there are only {len(pictures)} images")
    page = out / model / f"{feature_stem({'feature': identity(features)})}.map.html"
    check_writable(page)

    with screen.progress("scoring", len(pictures), of="images", each=1) as progress:
        asked: Any = {"criterion": criterion, "granularity": granularity, "precision": precision}
        scores = image_scores(network, pictures, features, progress=progress, **asked)
    members, apart = _grouped(scores, groups, number, seed)
    nulls = 0 if groups == "each" else nulls  # dealing out single images changes nothing
    parts = separate(scores, members, keep=keep, kernels=kernels, nulls=nulls, seed=seed)
    judged = judge(network, pictures, parts)
    made, kept = circuits(network, pictures, parts, judged), responses(parts, judged)
    paths = [out / model / f"{circuit.stem}.safetensors" for circuit in made]
    manifests = [{**circuit.manifest, "layers": list(circuit.masks)} for circuit in made]
    common.free_places(paths, manifests, force=force, otherwise="give the folders other names")
    html = None
    if mapped and len(pictures) >= FEWEST:
        found = trajectories(scores, neighbours=neighbours, seed=seed)
        html = map_page(network, pictures, parts, found)
    for path, circuit in zip(paths, made, strict=True):
        circuit.save(path, force=force)
    if html:
        write_whole(page, html.encode())

    screen.say(common.heading(model, weights, len(pictures), images) + "\n")
    rows = _rows(parts, made, kept)
    screen.table(("group", "images", "kept", "effective", "r", "r in group", "response", "others'"), rows)
    _say_overlap(screen, parts, apart)
    screen.say(f"\n{len(paths)} circuits in {out / model}{f', map in {page}' if html else ''}")
    screen.json(_document(parts, made, paths, kept, apart, page if html else None))


def _number_of_clusters(groups: str) -> int | None:
    """K of `cluster:K`; None for the other ways to group."""
    if groups in ("by-folder", "each"):
        return None
    found = re.fullmatch(f"cluster:{NUMBER}", groups)
    if not found or int(found[1]) < 1:
        raise InputError(f"--groups is {groups!r}; expected by-folder, each or cluster:K with a number K")
    return int(found[1])


def _grouped(
    scores: ImageScores, groups: str, number: int | None, seed: int
) -> tuple[list[str] | np.ndarray, float | None]:
    """Each image's group, and for clusters how far they are apart."""
    if groups == "each":
        return list(scores.names), None
    if number is None:
        return by_folder(scores.names), None
    points = profiles(scores)
    found = clusters(points, number, seed=seed)
    digits = len(str(number))
    return np.array([f"cluster-{c + 1:0{digits}}" for c in found]), finite(silhouette(points, found))


def _rows(parts: Parts, made: list[Circuit], kept: np.ndarray) -> list[list[Any]]:
    """A line for each group; responses that a circuit keeps of its own images and, in the mean, of other groups'."""
    rows = []
    for g, (name, size, circuit) in enumerate(zip(parts.names, parts.sizes.tolist(), made, strict=True)):
        m, others = circuit.manifest, np.delete(kept[g], g)
        other = finite(others.mean()) if others.size else "-"
        r = m["group_correlation"] if size > 1 else "-"
        rows.append([name, size, m["kept"], m["effective"], m["correlation"], r, finite(kept[g, g]), other])
    return rows


def _say_overlap(screen: Screen, parts: Parts, apart: float | None) -> None:
    if len(parts.names) < 2:
        return
    text = f"\nmean IoU of two groups' circuits: {parts.mean_overlap:.3f}"
    if len(parts.nulls):
        text += f"; of random groups of these sizes: {parts.nulls.mean():.3f}, p = {parts.p:.2g}"
    if apart is not None:
        text += f"\nsilhouette: {apart:.3f}. Clusters are made to differ: their p is no test."
    screen.say(text)


def _document(
    parts: Parts, made: list[Circuit], paths: list[Path], kept: np.ndarray, apart: float | None, page: Path | None
) -> dict[str, Any]:
    """What --json prints."""
    images = [
        {"image": name, "group": parts.names[g], "activation": finite(a), "position": at.tolist()}
        for name, g, a, at in zip(parts.of.names, parts.groups, parts.of.activations, parts.of.positions, strict=True)
    ]
    return {
        "circuits": [{"circuit": str(path), **c.manifest} for path, c in zip(paths, made, strict=True)],
        "images": images,
        "groups": list(parts.names),
        "overlap": [[finite(v) for v in row] for row in parts.overlap.tolist()],
        "nulls": parts.nulls.tolist(),
        "p": finite(parts.p),
        "silhouette": apart,
        "responses": [[finite(v) for v in row] for row in kept.tolist()],
        **({"map": str(page)} if page else {}),
    }
