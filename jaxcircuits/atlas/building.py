"""From a question to an atlas: plan, lock, what is there already, and the chunks that are left."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxcircuits.atlas import processes, store
from jaxcircuits.atlas.asking import agreed, asked
from jaxcircuits.atlas.lock import held
from jaxcircuits.atlas.store import ChunkId, Plan
from jaxcircuits.atlas.tables import check_table, write_table
from jaxcircuits.atlas.work import Progress, Work
from jaxcircuits.errors import InputError
from jaxcircuits.features import Features
from jaxcircuits.files import check_writable, folder, write_whole
from jaxcircuits.model import Model
from jaxcircuits.options import Options, check_steps
from jaxcircuits.packages import needed

KEEPS = (0.5, 0.1, 0.05, 0.01)


class Done(NamedTuple):
    """A chunk that was written."""

    which: ChunkId
    features: int
    bytes: int


Engine = Callable[[Work, Path, Sequence[ChunkId], Progress], Iterator[Done]]
"""Makes chunks and writes them, in any order; tells of each."""


def question(
    model: Model,
    images,
    features: Features | Iterable[Features] | None,
    root: Path,
    *,
    ablation: str = "zero",
    keep: float | Sequence[float] | None = None,
    kernels: int | Sequence[int] | None = None,
    scores: str | None = None,
    **options: Any,
) -> Plan:
    """What `build_atlas` would do, for the same arguments and with the same errors; nothing is scored or written."""
    how = Options(**options)
    check_steps(how.steps, [how.criterion])
    keep = KEEPS if keep is None and kernels is None else keep
    keep = tuple(dict.fromkeys(keep)) if isinstance(keep, Sequence) else keep
    kernels = tuple(dict.fromkeys(kernels)) if isinstance(kernels, Sequence) else kernels
    if isinstance(features, Features):
        features = [features]
    new = asked(model, images, features, how, scores=scores, ablation=ablation, keep=keep, kernels=kernels)
    check_writable(root / store.MANIFEST)
    return agreed(new, root, sized=(how.chunk is not None, how.batch is not None))


@contextlib.contextmanager
def begun(plan: Plan, root: Path) -> Iterator[list[ChunkId]]:
    """The chunks that are left to be made, with the atlas locked; the tables are written at the end.

    Raises:
        InputError: another process holds the lock, another atlas is there, or nothing can be written.
    """
    every = list(plan)
    with contextlib.ExitStack() as stack:
        with processes.agreed(len(every)) as left:
            if processes.first():
                _prepare(plan, root, stack)
                left += [number for number, which in enumerate(every) if _to_be_made(plan, root, which)]
        if store.read(root).question != plan.question:
            raise InputError(f"another of the processes asks {str(root)!r} for something else, or with other chunks")
        yield [every[number] for number in left]
        processes.wait("all chunks")
        if processes.first():
            _clear(root)  # a cluster's workers may have been killed since the beginning
            finish(plan, root)


def _prepare(plan: Plan, root: Path, stack: contextlib.ExitStack) -> None:
    """Make the directory, lock it for as long as the stack lasts, and say what it is for."""
    needed("pyarrow", "an atlas")  # only the end uses it
    try:
        with folder(root):
            stack.enter_context(held(root))
            if (root / store.MANIFEST).exists():  # another process may have been faster
                if store.read(root).question != plan.question:
                    raise InputError(f"{str(root)!r} has become another atlas; name another directory")
            else:
                write_whole(root / store.MANIFEST, store.written(plan))
    except OSError as error:
        raise InputError(f"{str(root)!r} cannot be written: {error.strerror}") from error
    _clear(root)


def _clear(root: Path) -> None:
    """Remove what processes that were killed have begun to write."""
    for unfinished in root.glob("*/.*.part"):
        if not unfinished.parent.is_symlink():
            unfinished.unlink(missing_ok=True)


def _to_be_made(plan: Plan, root: Path, which: ChunkId) -> bool:
    trouble = store.trouble(plan, root, which)
    if trouble not in (None, "missing"):
        warnings.warn(f"{str(plan.path(root, which))!r} is {trouble} and is made again", stacklevel=5)
    return trouble is not None


def finish(plan: Plan, root: Path) -> None:
    """Write the tables that are missing or do not say what the chunks say; all chunks are there."""
    for group in range(len(plan.groups)):
        if check_table(plan, root, group):
            write_table(plan, root, group)


def one_device(work: Work, root: Path, todo: Sequence[ChunkId], progress: Progress) -> Iterator[Done]:
    """The engine of a machine with one device: one chunk after another."""
    for which in todo:
        chunk = work.chunk(which, work.scores(which, progress), progress)
        yield written(work.plan, root, which, chunk)


def written(plan: Plan, root: Path, which: ChunkId, chunk: store.Chunk) -> Done:
    return Done(which, len(chunk.kept), store.write_chunk(plan, root, which, chunk))


def build_atlas(
    model: Model,
    images,
    features: Features | Iterable[Features] | None = None,
    *,
    directory: str | Path,
    devices: Sequence[Any] | None = None,
    progress: Progress = lambda done: None,
    **options: Any,
) -> None:
    """Write the circuits of many features to a directory, or go on where the same call was interrupted.

    The directory is a store for `Atlas`. A chunk of features is the unit of work: what is finished is never lost, and
    interruptions change no byte. Another number of devices may change the last digit of a score.

    Args:
        model, images: as for `extract`.
        features: as for `extract`; all channels of all convolutions if not given.
        directory: where the atlas is, or is to be.
        devices: those that share the work; all of this process, or of all processes that `jax.distributed` knows, by
            default.
        progress: as for `extract`.
        **options: of `extract`: `criterion`, `absolute`, `ablation`, `keep` (by default .5, .1, .05, .01), `kernels`,
            `layers`, `granularity`, `steps`, `seed`, `precision`, `chunk`, `batch`; and `scores`, "float16" or
            "float32", to store the scores as well.

    Raises:
        InputError: as `extract`; the directory holds another atlas, or another process is at work on it.
    """
    from jaxcircuits.atlas.devices import engine

    root = Path(directory)
    plan = question(model, images, features, root, **options)
    with begun(plan, root) as todo:
        for _ in engine(devices)(Work(model, images, plan), root, todo, progress):
            pass
