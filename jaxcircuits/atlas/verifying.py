"""Whether an atlas is whole: every file against its checksum."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from jaxcircuits.atlas import store
from jaxcircuits.atlas.tables import check_table
from jaxcircuits.errors import InputError


class Fault(NamedTuple):
    """A file that has to be made again.

    Attributes:
        file: its path.
        why: "missing", or what is wrong with it.
        features: those that are in it.
    """

    file: str
    why: str
    features: tuple[str, ...]


def verify(directory: str | Path) -> list[Fault]:
    """What has to be made again, chunks and tables; the same call of `build_atlas` makes it. Nothing if all is whole.

    Raises:
        InputError: there is no atlas, or it is of another version.
    """
    root = Path(directory)
    plan = store.read(root)
    faults, broken = [], set()
    for which in plan:
        if why := store.trouble(plan, root, which):
            broken.add(which.group)
            faults.append(Fault(str(plan.path(root, which)), why, plan.features(which).labels))
    for g, group in enumerate(plan.groups):
        path = root / group.folder / store.TABLE
        why = _table_trouble(plan, root, g) if g not in broken else None if path.exists() else "missing"
        if why:
            faults.append(Fault(str(path), why, group.features.labels))
    return faults


def _table_trouble(plan: store.Plan, root: Path, group: int) -> str | None:
    try:
        return check_table(plan, root, group)
    except InputError as error:  # a chunk that has gone since it was looked at
        return str(error)
