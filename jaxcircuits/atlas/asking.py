"""What an atlas is asked for: the plan that `atlas.json` holds, and whether the one that is there is the same."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxcircuits.atlas.checking import SCORES
from jaxcircuits.atlas.store import COMPARED, FORMAT, MANIFEST, Group, Plan, described, read
from jaxcircuits.data import image_shape
from jaxcircuits.errors import InputError
from jaxcircuits.features import Features
from jaxcircuits.jobs import plan
from jaxcircuits.model import Model
from jaxcircuits.options import Options

SIZES = ("chunk", "batch")
LONGEST = 150  # letters of a folder's name, before a number


def asked(
    model: Model,
    images,
    features: Iterable[Features] | None,
    options: Options,
    *,
    scores: str | None,
    **more: Any,
) -> Plan:
    """The plan for what `build_atlas` was given, with its errors; nothing is scored."""
    if scores is not None and scores not in SCORES:
        raise InputError(f"unknown scores {scores!r}; expected float16 or float32, or none at all")
    network = model.network(image_shape(images))
    jobs = plan(model, images, every(model) if features is None else features, options, **more)
    groups: list[Group] = []
    for job in jobs:
        shapes = {name: (network.layers[name].outputs, network.layers[name].inputs) for name in job.layers}
        size = options.sizes(network, job.layers, images)
        folder = _folder(job.features, {group.folder for group in groups})
        groups.append(Group(folder, job.features, shapes, min(size.features, len(job.features)), size.images))
    # an atlas answers by name: two of one name, of which a table could not say which is which, are not for one atlas
    labels = [label for group in groups for label in group.features.labels]
    if len(set(labels)) < len(labels):
        twice = next(label for i, label in enumerate(labels) if label in labels[:i])
        raise InputError(
            f"the feature {twice} is asked for twice; expected each name once (other objectives in another atlas)"
        )
    shared = {k: v for k, v in jobs[0].asked.items() if k not in ("layers", "objective", "versions")}
    manifest = {"format": FORMAT, **shared, "steps": shared.get("steps"), "amounts": jobs[0].amounts, "scores": scores}
    return Plan(manifest | {"groups": list(map(described, groups))}, tuple(groups))


def every(model: Model) -> list[Features]:
    """All channels of every layer that can be scored and has its weights: convolutions, for they make circuits."""
    there = (la for la in model.layers.values() if la.kind == "conv" and not la.trouble)
    return [Features(la.name) for la in there if f"{la.name}.weight" not in model.missing]


def agreed(new: Plan, root: Path, *, sized: tuple[bool, bool]) -> Plan:
    """The plan of the atlas that is in this directory, if it asks the same; `new` if there is none yet.

    How features are shared out to chunks is the old one's, which may have been begun on a machine with more memory.

    Args:
        sized: whether chunk and batch were asked for, so that they have to be the same as well.

    Raises:
        InputError: it is of another version or asks for something else; the directory holds something else.
    """
    if not (root / MANIFEST).exists():
        if root.exists() and (not root.is_dir() or any(not p.name.startswith(".") for p in root.iterdir())):
            raise InputError(f"{str(root)!r} is there and holds no atlas; name a new or an empty directory with --out")
        return new
    old = read(root)
    wanted = json.loads(json.dumps(new.manifest))
    differing = [name for name in COMPARED if old.manifest.get(name) != wanted[name]]
    groups = [manifest["groups"] for manifest in (old.manifest, wanted)]
    features = [[{k: v for k, v in group.items() if k not in SIZES} for group in each] for each in groups]
    if features[0] != features[1]:
        differing.append("features")
    for name, given in zip(SIZES, sized, strict=True):
        old_sizes, new_sizes = ([group[name] for group in each] for each in groups)
        if given and old_sizes != new_sizes:
            differing.append(name)
    if differing:
        what = ", ".join(differing)
        raise InputError(f"{str(root)!r} holds an atlas made otherwise (not the same: {what}); name another directory")
    return old


def _folder(features: Features, taken: set[str]) -> str:
    """A folder's name: `features.3`, `features.3@middle`, `features.3.max`, with a number where it is taken, also in
    other letters' case; cut where it is long."""
    place = ",".join(map(str, features.place)) if isinstance(features.place, tuple) else features.place
    name = features.layer + (f"@{place}" if place else "")
    name = re.sub(r"[^\w.,@-]", "_", name + ("" if features.objective == "abs" else f".{features.objective}"))
    name, there = name[:LONGEST], {folder.lower() for folder in taken}
    return next(new for n in itertools.count(1) if (new := name if n == 1 else f"{name}-{n}").lower() not in there)
