"""Chunks shared out to the workers of a Dask cluster, which write them into the same directory.

A task is the number of a chunk; what comes back is how large it has become. Workers need the same file system, and read
the model and the images themselves. When a worker dies, the scheduler gives its chunk to another.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxcircuits.atlas import store
from jaxcircuits.atlas.building import Done, Engine, written
from jaxcircuits.atlas.predicting import effort
from jaxcircuits.atlas.store import ChunkId
from jaxcircuits.atlas.work import Progress, Work
from jaxcircuits.data import Images, count, read_images
from jaxcircuits.errors import InputError
from jaxcircuits.loading import load
from jaxcircuits.models import ARCHITECTURES
from jaxcircuits.packages import needed

SECONDS = 30  # until a scheduler that does not answer is given up


class Task(NamedTuple):
    """What a worker needs to know, all of it small.

    Attributes:
        root: of the atlas, an absolute path. question: of its plan.
        images, resize, number: how the images are read.
        weights, transform_input: how the model is.
        cache: of compiled programs.
    """

    root: str
    question: str
    images: str
    resize: str
    number: int
    weights: str
    transform_input: bool | None
    cache: str | None


def engine(address: str) -> Engine:
    """What makes chunks on the workers of the cluster whose scheduler has this address.

    Raises:
        InputError: distributed is not installed, or there is no scheduler.
    """
    distributed = needed("distributed", "an atlas on a cluster")
    _client(distributed, address).close()  # before anything is written
    return functools.partial(_on_cluster, distributed, address)


def _client(distributed: Any, address: str) -> Any:
    try:
        return distributed.Client(address, timeout=SECONDS)
    except (OSError, ValueError) as error:
        raise InputError(f"there is no Dask scheduler at {address!r}: {str(error).partition(chr(10))[0]}") from None


def _on_cluster(
    distributed: Any, address: str, work: Work, root: Path, todo: Sequence[ChunkId], progress: Progress
) -> Iterator[Done]:
    task = _task(work, root)
    each = count(work.images) * (1 + len(work.plan.amounts))
    efforts = effort(work)
    todo = sorted(todo, key=lambda which: -efforts[which.group])  # no long chunk begins last
    with _client(distributed, address) as client:
        futures = client.map(make, todo, task=task, pure=False)
        try:
            for future in distributed.as_completed(futures):
                done = Done(*future.result())
                progress(done.features * each)
                yield done
        except (CancelledError, distributed.comm.CommClosedError) as error:
            raise InputError(
                f"the Dask scheduler at {address!r} is gone; what is done is kept, and the same command goes on"
            ) from error
        except distributed.KilledWorker as error:
            raise InputError(
                f"workers died again and again at one chunk, perhaps for want of memory: {error}"
            ) from error
        finally:
            with contextlib.suppress(OSError, CancelledError):  # of a scheduler that is gone
                client.cancel(futures)


def _task(work: Work, root: Path) -> Task:
    model, images = work.model, work.images
    if model.name not in ARCHITECTURES or model.weights == "given" or not isinstance(images, Images):
        raise InputError("the workers of a cluster load the model by its name and read the images themselves")
    if images.source == "array":
        raise InputError("the images are an array in memory, which a cluster's workers cannot read; name a file")
    return Task(
        str(root.resolve()),
        work.plan.question,
        _absolute(images.source, ("photos", "tfds")),
        images.resize or "crop",
        len(images),
        _absolute(model.weights, ("lpips", "torchvision", "random")),
        model.transform_input,
        jax.config.jax_compilation_cache_dir,  # pyright: ignore[reportAttributeAccessIssue]
    )


def _absolute(source: str, names: tuple[str, ...]) -> str:
    """A path that means the same in another working directory; names stay as they are."""
    return source if source.partition(":")[0] in names else os.path.abspath(os.path.expanduser(source))


_TURN = threading.Lock()  # a worker with several threads makes one chunk after another


def make(which: ChunkId, task: Task) -> tuple[ChunkId, int, int]:
    """Make a chunk and write it: what a worker does."""
    with _TURN:
        work = _work(task)
        which = ChunkId(*which)
        return tuple(written(work.plan, Path(task.root), which, work.chunk(which, work.scores(which))))  # pyright: ignore


@functools.lru_cache(1)
def _work(task: Task) -> Work:
    """Model, images and plan, read once in a worker, and checked."""
    if task.cache and not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", task.cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    plan = store.read(Path(task.root))
    if plan.question != task.question:
        raise InputError(f"a worker sees another atlas in {task.root!r}; expected a file system that all share")
    asked: dict[str, Any] = plan.manifest
    model = load(asked["model"], weights=task.weights, transform_input=task.transform_input)
    if model.sha256 != asked["weights"]["sha256"]:
        raise InputError(f"a worker reads other weights from {task.weights!r}")
    images = read_images(task.images, model, resize=task.resize, limit=task.number)
    if images.digest != asked["images"]["digest"]:
        raise InputError(f"a worker reads other images from {task.images!r}")
    return Work(model, images, plan)
