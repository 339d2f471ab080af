"""`atlas`: the circuits of whole layers and networks in one directory, interrupted and gone on with at will."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import jax

from jaxcircuits.atlas import store
from jaxcircuits.atlas.building import KEEPS, Done, begun, question
from jaxcircuits.atlas.checking import SCORES
from jaxcircuits.atlas.predicting import Prediction, effort, predict
from jaxcircuits.atlas.store import ChunkId, Plan
from jaxcircuits.atlas.verifying import verify
from jaxcircuits.atlas.work import Work
from jaxcircuits.cli import common
from jaxcircuits.cli.common import QUIET, RESIZE, SEED, STRICT, Command, numbers, options
from jaxcircuits.cli.screen import Screen
from jaxcircuits.data import count
from jaxcircuits.errors import InputError
from jaxcircuits.features import Features
from jaxcircuits.layers import Layer
from jaxcircuits.spelling import parse

LEVELS = ",".join(f"{keep:g}" for keep in KEEPS)


@click.command(cls=Command)
@click.argument("model", required=False)
@click.argument("layers", nargs=-1, metavar="[LAYER...]")
@options(common.WEIGHTS, common.TRANSFORM, common.IMAGES, RESIZE, STRICT)
@click.option("--limit", type=click.IntRange(min=1), help="Only so many images, the first ones.")
@options(common.CRITERION, common.ABSOLUTE, common.OBJECTIVE, common.ABLATION)
@options(common.keep_option(LEVELS), common.KERNELS, common.GRANULARITY, common.STEPS)
@click.option("--scores", type=click.Choice(list(SCORES)), help="Store the scores as well.")
@options(common.PRECISION, common.CHUNK, common.BATCH)
@click.option("--out", type=common.Place(), help="A directory.  [default: atlases/MODEL.CRITERION]")
@click.option("--dask", metavar="ADDRESS", help="Share chunks out to the workers of a Dask cluster (extra `cluster`).")
@click.option(
    "--distributed", metavar="HOST:PORT,PROCESSES,ID",
    help="This is one of several processes of jax.distributed; `auto` on a TPU pod or under SLURM.",
)  # fmt: skip
@click.option(
    "--dry-run", is_flag=True, help="Say what would be made, how long it would take and how large it would be."
)
@click.option(
    "--verify", "to_verify", type=click.Path(path_type=Path), metavar="DIR",
    help="Check every file of an atlas against its checksum; exit code 1 if something has to be made again.",
)  # fmt: skip
@options(SEED, QUIET)
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each event.")
def atlas(
    model: str | None, layers: tuple[str, ...], weights, transform_input, images, resize, strict, limit, criterion,
    absolute, objective, ablation, keep, kernels, granularity, steps, scores, precision, chunk, batch,
    out: Path | None, dask, distributed, dry_run, to_verify: Path | None, seed, quiet, as_json,
) -> None:  # fmt: skip
    """Make the circuits of all features of MODEL's LAYERs, or of the whole network, and write them to a directory.

    A LAYER is the name of one, or features as for `extract`: LAYER:A-B, LAYER:*@middle, LAYER:FILE.npy. The same
    command goes on where it was interrupted. `jaxcircuits query DIR` asks questions of what is there.
    """
    screen = Screen(quiet, as_json)
    if to_verify is not None:
        if model is not None:
            raise InputError("--verify takes a directory and no model")
        raise SystemExit(_verified(screen, to_verify))
    if model is None:
        raise InputError("there is no model; expected MODEL [LAYER...], or --verify DIR")
    if dask and distributed:
        raise InputError("give either --dask or --distributed")
    if distributed:
        from jaxcircuits.atlas.processes import join

        join(distributed)
    network = common.network_given(model, weights, transform_input, seed)
    pictures = common.images_given(images, network, resize, strict, limit)
    asked: dict[str, Any] = {
        "criterion": criterion, "absolute": absolute, "ablation": ablation, "granularity": granularity, "steps": steps,
        "seed": seed, "precision": precision, "scores": scores, "chunk": chunk, "batch": batch,
        "keep": None if keep is None else numbers("keep", keep, float),
        "kernels": None if kernels is None else numbers("kernels", kernels, int),
    }  # fmt: skip
    root = out or Path("atlases") / f"{model}.{criterion}"
    features = [_features(text, network.layers, objective) for text in layers] or None
    plan = question(network, pictures, features, root, **asked)
    work = Work(network, pictures, plan)
    what = common.heading(model, weights, len(pictures), images)
    if dry_run:
        todo = [which for which in plan if store.trouble(plan, root, which)]
        _print_predictions(screen, root, what, predict(work, todo))
        return
    if dask:
        from jaxcircuits.atlas.cluster import engine as on_cluster

        engine = on_cluster(dask)
    else:
        from jaxcircuits.atlas.devices import engine as on_devices

        engine = on_devices()
    with begun(plan, root) as todo:
        seconds = _build(screen, work, root, todo, engine, what)
    size, circuits = sum(_sizes(root)), len(plan.amounts) * sum(len(plan.features(which)) for which in plan)
    screen.say(f"\n{circuits} circuits in {root}, {size / 1e6:.1f} MB")
    screen.line({"event": "done", "directory": str(root), "bytes": size, "seconds": round(seconds, 3)})


def _features(text: str, layers: Mapping[str, Layer], objective: str) -> Features:
    """A layer's name, or features as `extract` has them."""
    return parse(text if ":" in text else f"{text}:*", layers, objective=objective)


def _sizes(root: Path) -> Iterator[int]:
    """Bytes of the files that are there; others may come and go meanwhile."""
    for path in root.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                yield path.stat().st_size


def _build(screen: Screen, work: Work, root: Path, todo: Sequence[ChunkId], engine, what: str) -> float:
    """Make this process's share of the chunks; the seconds that it took."""
    plan, number = work.plan, count(work.images)
    sizes = {which: len(plan.features(which)) for which in plan}
    there = sum(sizes.values()) - sum(sizes[which] for which in todo)
    screen.say(f"{what}\n{sum(sizes.values())} features in {len(sizes)} chunks" + (f", {there} there" if there else ""))
    screen.line({"event": "begun", "directory": str(root), "features": sum(sizes.values()), "there": there,
                 "chunks": len(sizes), "left": len(todo), "images": number})  # fmt: skip
    pace = Pace(plan, effort(work), number, todo)
    total = number * sum(sizes[which] for which in todo) * (1 + len(plan.amounts)) / jax.process_count()
    with screen.progress("scoring and judging", total, of="features", each=number * (1 + len(plan.amounts))) as tell:
        for done in engine(work, root, todo, tell):
            event = pace.after(done)
            screen.line({"event": "chunk", **event, "file": str(plan.path(root, done.which))})
            screen.note(
                f"{there + event['done']} of {sum(sizes.values())} features, {event['features_per_second']:.3g} a "
                f"second, {number} images each, {spoken(event['seconds_left'])} left"
            )
    return pace.elapsed


class Pace:
    """How fast chunks are made, and how long the rest will take: as long for as much work.

    Args:
        plan: of the atlas.
        efforts: of a feature of each group and an image.
        images: how many.
        todo: the chunks that are left, in all processes, which have about as much work each.
    """

    def __init__(self, plan: Plan, efforts: Sequence[float], images: int, todo: Sequence[ChunkId]) -> None:
        self.efforts, self.images, self.begun = efforts, images, time.monotonic()
        everything = sum(efforts[which.group] * len(plan.features(which)) for which in todo)
        self.total = everything / jax.process_count()
        self.features, self.spent = 0, 0.0

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.begun

    def after(self, done: Done) -> dict[str, Any]:
        self.features += done.features
        self.spent += self.efforts[done.which.group] * done.features
        return {
            "done": self.features,
            "images": self.images,
            "features_per_second": round(self.features / self.elapsed, 4),
            "seconds": round(self.elapsed, 3),
            "seconds_left": round(self.elapsed * max(0.0, self.total / self.spent - 1), 3),
            "bytes": done.bytes,
        }


def spoken(seconds: float) -> str:
    """A time as people say it: "40 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _print_predictions(screen: Screen, root: Path, what: str, found: Sequence[Prediction]) -> None:
    seconds, size = sum(p.seconds for p in found), sum(p.bytes for p in found)
    screen.say(f"{what}\n")
    rows = [
        [p.folder, str(p.features), str(p.chunks), spoken(p.scoring), spoken(p.judging), f"{p.bytes / 1e6:.1f} MB"]
        for p in found
    ]
    screen.table(("layer", "features left", "chunks", "scoring", "judging", "size"), rows)
    compiling = sum(p.compiling for p in found)
    screen.say(
        f"\n{root}: about {spoken(seconds)} on one device, {spoken(compiling)} of them for compiling; "
        f"{size / 1e6:.1f} MB"
    )
    screen.line({"event": "dry-run", "directory": str(root), "seconds": round(seconds, 3), "bytes": size,
                 "layers": [p._asdict() for p in found]})  # fmt: skip


def _verified(screen: Screen, root: Path) -> int:
    """Print what has to be made again; the exit code."""
    plan, faults = store.read(root), verify(root)
    for fault in faults:
        screen.say(f"{fault.file}: {fault.why}; {len(fault.features)} features, {fault.features[0]} and on")
        screen.line({"event": "fault", **fault._asdict()})
    chunks = sum(1 for _ in plan)
    screen.say(
        f"{root}: {len(faults)} of {chunks + len(plan.groups)} files have to be made again; the command that made the "
        "atlas does it" if faults else f"{root}: whole, {chunks} chunks and {len(plan.groups)} tables"
    )  # fmt: skip
    screen.line({"event": "verified", "directory": str(root), "whole": not faults, "faults": len(faults)})
    return 1 if faults else 0
