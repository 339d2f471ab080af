"""Atlases."""

import json
import warnings
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import jaxcircuits as jc
from jaxcircuits.atlas import store
from jaxcircuits.atlas.store import Chunk, Group, Plan
from jaxcircuits.atlas.tables import write_table
from tests.hostile.circuits import MANIFEST
from tests.hostile.mutations import STRINGS, json_text, spoiled, twisted
from tests.hostile.survival import Attempt, command


@cache
def seed_atlas() -> tuple[Plan, dict[Any, Chunk]]:
    """An atlas of two layers in three chunks, of numbers that nobody has computed."""
    rng = np.random.default_rng(0)
    asked = {k: MANIFEST[k] for k in ("format", "model", "weights", "images", "criterion", "ablation")}
    asked |= {
        "absolute": "per_image",
        "granularity": "kernel",
        "seed": None,
        "precision": "float32",
        "dtype": "float32",
    }
    asked |= {"steps": None, "amounts": [{"keep": 0.5}, {"keep": 0.1}], "scores": "float16"}
    shapes = {"features.0": (8, 3), "features.3": (6, 8)}
    groups = (
        Group("features.0", jc.Features("features.0", [1, 3, 5]), {"features.0": (8, 3)}, 2, 2),
        Group("features.3@middle", jc.Features("features.3", [0, 4], position="middle"), shapes, 2, 2),
    )
    plan = Plan(asked | {"groups": [store.described(group) for group in groups]}, groups)
    chunks = {}
    for which in plan:
        f, shapes = len(plan.features(which)), plan.groups[which.group].shapes
        masks = {name: store.packed(rng.random((f, 2, i, o)) < 0.3) for name, (o, i) in shapes.items()}
        more = {f"score/{name}": rng.random((f, *shape)).astype(np.float16) for name, shape in shapes.items()}
        counts = [rng.integers(1, 9, size) for size in ((f,), (f, 2), (f, 2))]
        about = {"sparse": False, "versions": {"jax": "1"}}
        chunks[which] = Chunk(masks, *counts, rng.random((f, 2)), more | {"scale": np.ones(f, np.float32)}, about)
    return plan, chunks


def altered(root: Path, **changes) -> Path:
    """An atlas whose manifest says something else, with checksums that are right."""
    plan, chunks = seed_atlas()
    told = Plan(plan.manifest | changes, plan.groups)
    root.mkdir(parents=True, exist_ok=True)
    (root / store.MANIFEST).write_text(json.dumps(told.manifest))
    for which, chunk in chunks.items():
        store.write_chunk(told, root, which, chunk)
    return root


@cache
def seed_table(group: int) -> bytes:
    plan, chunks = seed_atlas()
    with TemporaryDirectory() as folder:
        for which, chunk in chunks.items():
            store.write_chunk(plan, Path(folder), which, chunk)
        write_table(plan, Path(folder), group)
        return Path(folder, plan.groups[group].folder, store.TABLE).read_bytes()


def wrong_chunk(rng: Random, chunk: Chunk) -> Chunk:
    """With a checksum that is right: what is in it is not."""
    how = rng.randrange(7)
    name = rng.choice(sorted(chunk.masks))
    bits = chunk.masks[name]
    if how == 0:
        return chunk._replace(
            masks=chunk.masks
            | {
                name: rng.choice(
                    (bits[:1], bits[:, :, :1], bits[..., None], bits.astype(np.int64), bits | 255, bits * 0)
                )
            }
        )
    if how == 1:
        return chunk._replace(
            masks={n: b for n, b in chunk.masks.items() if n != name}
            | {rng.choice(STRINGS).replace("\0", "").encode("utf-8", "ignore").decode(): bits}
        )
    if how == 2:
        return chunk._replace(
            **{
                rng.choice(("relevant", "kept", "effective", "correlation")): np.zeros(
                    rng.choice(((0,), (1,), (2, 2), (3, 3), ()))
                )
            }
        )
    if how == 3:
        return chunk._replace(correlation=np.full_like(chunk.correlation, rng.choice((np.nan, np.inf, -np.inf, 1e308))))
    if how == 4:
        return chunk._replace(
            more=rng.choice(
                (
                    {},
                    {k: v[:1] for k, v in chunk.more.items()},
                    {k: v * np.float16(np.nan) for k, v in chunk.more.items()},
                )
            )
        )
    if how == 5:
        return chunk._replace(
            about=rng.choice(
                ({}, {"sparse": []}, {"sparse": 1, "versions": "x"}, {"labels": ["x"], "sparse": None, "versions": {}})
            )
        )
    return chunk._replace(kept=chunk.kept * 0 - 5, masks={n: b * 0 for n, b in chunk.masks.items()})


def atlas(rng: Random, place: Path) -> Attempt:
    plan, chunks = seed_atlas()
    root, manifest = place / "in" / "atlas", plan.manifest
    how = rng.randrange(4)
    if how == 0:
        manifest = twisted(rng, manifest)
    elif how == 1:  # further in
        manifest = {**manifest, "groups": twisted(rng, manifest["groups"])}
    told = Plan(manifest, plan.groups)
    root.mkdir()
    (root / store.MANIFEST).write_bytes(
        json_text(rng, manifest) if rng.random() < 0.1 else json.dumps(manifest).encode()
    )
    for which, chunk in chunks.items():
        if how == 2 and rng.random() < 0.5:
            chunk = wrong_chunk(rng, chunk)
        store.write_chunk(told, root, which, chunk)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        for group in range(len(plan.groups)):
            if how != 2:
                (root / plan.groups[group].folder / store.TABLE).write_bytes(seed_table(group))
    if how == 3 or rng.random() < 0.1:
        spoiled(rng, root, place)
    question = rng.choice(
        (
            [], ["statistics"], ["table"], ["circuit", "features.0:3"], ["circuit", "features.3:4@middle"],
            ["shared", "features.0"],
            ["users", "features.0:1"], ["users", "features.3:1,2"], ["iou", "features.0:1", "features.3:0@middle"],
            ["matrix"],
            ["nearest", "features.0:1"], ["clusters"],
        )
    )  # fmt: skip
    level = ["--keep", "0.5"] if question and question[0] not in ("statistics", "table") else []
    out = ["--out", str(place / "out")] if question[:1] == ["circuit"] else []
    if rng.random() < 0.2:
        return lambda: command("atlas", "--verify", str(root))
    return lambda: command("query", str(root), *question, *level, *out)
