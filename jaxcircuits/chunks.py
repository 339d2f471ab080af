"""How many features and images go together into one device call."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxcircuits.features import Features
from jaxcircuits.layers import Layer
from jaxcircuits.taps import Network
from jaxcircuits.threads import processors

Tree = TypeVar("Tree")

# Beyond this many features a CPU gains nothing more from sharing the forward pass; with so many it gains most of that.
LARGEST, ENOUGH = 64, 16
# Share of the device's memory that the calls under way may take, and their most in bytes.
SHARE, MOST = 0.4, 10 << 30
# Images in one device call: what is made once a call is shared, and memory stays small.
IMAGES = 4
# Images in one device call of an evaluation, and how large they may make a layer's output together, in bytes: it should
# stay in the cache.
TOGETHER, CACHED = 16, 32 << 20
# Where a container says how many bytes it may take.
CONTAINERS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def device_memory() -> int:
    """Bytes of memory of the default device; of the machine, for a CPU."""
    stats = jax.local_devices()[0].memory_stats()  # another process's device does not tell
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    if not hasattr(os, "sysconf"):  # Windows
        return 8 << 30
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for place in CONTAINERS:
        text = Path(place).read_text().strip() if Path(place).exists() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits)


class Sizes(NamedTuple):
    """How the work is cut.

    Attributes:
        features: of a chunk.
        images: of one device call.
        streams: calls with other images that run at the same time, each with sums of its own.
        parts: into how many calls a chunk's features are divided, which run at the same time as well.
    """

    features: int
    images: int
    streams: int
    parts: int = 1

    @property
    def together(self) -> int:
        """Features of one device call."""
        return -(-self.features // self.parts)

    def halved(self) -> Sizes:
        """With half as many features a chunk."""
        return self._replace(features=-(-self.features // 2))


def sizes(
    network: Network,
    layers: tuple[str, ...],
    *,
    images: int,
    by_weight: bool,
    chunk: int | None,
    batch: int | None,
    features: int | None = None,
) -> Sizes:
    """Features and images a device call: those asked for, or what fits; and how many calls at a time. Of `features` in
    all, chunks that choose themselves are alike.

    Features together gain more than images together. On a CPU one call for each core, if there are enough features for
    each, gain more than one call with all cores: its many small products are not worth sharing out. Where images are
    fewer than cores, features are divided among these.
    """

    def fitting(batch: int, streams: int) -> int:
        return int(_budget() // (streams * _bytes_a_feature(network, layers, batch=batch, by_weight=by_weight)))

    worth = IMAGES if by_weight else 1  # sums of weights are large, and one more of them takes time as well
    batch = batch and min(batch, images)
    calls = range(min(cores(), -(-images // max(batch or 1, worth))), 0, -1)
    streams = next((n for n in calls if fitting(batch or 1, n) >= (chunk or ENOUGH)), 1)
    if batch is None:
        rounds = -(-images // (IMAGES * streams))
        several = -(-images // (rounds * streams))
        batch = several if fitting(several, streams) >= LARGEST else 1
    most = chunk or max(1, min(LARGEST, fitting(batch, streams)))
    if features is not None:
        most = min(chunk, features) if chunk else evenly(features, most)
    parts = range(min(cores() // streams, most // ENOUGH), 1, -1)
    return Sizes(most, batch, streams, next((n for n in parts if fitting(batch, streams * n) * n >= most), 1))


def largest(layers: Iterable[Layer]) -> int:
    """Numbers of one image's output, of the layer that has most."""
    return max((math.prod(layer.output_shape) for layer in layers), default=0)


def images_together(network: Network, images: int) -> int:
    """How many of the images make one device call of an evaluation, so that as few as possible calls are alike."""
    bytes_ = 4 * largest(network.layers.values())
    return evenly(images, max(1, min(TOGETHER, CACHED // bytes_)))


def cores() -> int:
    """How many device calls can run at the same time: one on anything but a CPU."""
    return processors() if jax.default_backend() == "cpu" else 1


def _budget() -> float:
    return min(SHARE * device_memory(), MOST)


def _bytes_a_feature(network: Network, layers: tuple[str, ...], *, batch: int, by_weight: bool) -> int:
    """Of its gradients, statistics and scores in one device call."""
    numbers = 0
    for layer in (network.layers[name] for name in layers):
        positions = layer.positions[0] * layer.positions[1]
        weights = layer.window[0] * layer.window[1] if by_weight else 1
        # all gradients, as much as those take that are in memory at one time, and what they are made from; statistic,
        # its update and the scores
        numbers += batch * positions * layer.outputs + (2 * weights + 1) * layer.kernels
    return 4 * numbers


def evenly(total: int, most: int) -> int:
    """How many of `total` features make a chunk, so that as few as possible chunks of at most `most` are alike."""
    return -(-total // -(-total // most))


def chunk_at(features: Features, start: int, size: int) -> Features:
    """`size` features from `start` on; the last chunk is filled up with the last feature, to run the same program."""
    return features[np.minimum(np.arange(start, start + size), len(features) - 1)]


def in_chunks(features: Features, size: int) -> Iterator[Features]:
    """Chunks of one size, at most all features."""
    size = min(size, len(features))
    for start in range(0, len(features), size):
        yield chunk_at(features, start, size)


class Collected(Generic[Tree]):
    """Parts, pytrees of arrays (some, ...), one after the other in arrays (total, ...). Each is written there as it
    comes, so that all of them are in memory once."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self._whole: Tree | None = None

    def add(self, part: Tree) -> None:
        """One more part, without what fills up the last one."""
        size, rest = len(jax.tree.leaves(part)[0]), self.total - self.done
        if size > rest:
            size, part = rest, jax.tree.map(lambda a: a[:rest], part)
        if size == self.total:
            self._whole = part
        else:
            if self._whole is None:
                self._whole = jax.tree.map(lambda a: jnp.zeros((self.total, *a.shape[1:]), a.dtype), part)
            self._whole = _written(self._whole, part, jnp.int32(self.done))
        self.done += size

    @property
    def whole(self) -> Tree:
        """All of them."""
        assert self._whole is not None and self.done == self.total
        return self._whole


@functools.partial(jax.jit, donate_argnames="whole")
def _written(whole: Tree, part: Tree, start: Array) -> Tree:
    return jax.tree.map(lambda a, own: lax.dynamic_update_slice_in_dim(a, own, start, 0), whole, part)
