"""How many features and images go together into one device call."""

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from jaxcircuits.features import Features
from jaxcircuits.taps import Network

# Beyond this many features a CPU gains nothing more from sharing the forward pass.
LARGEST = 64
# Share of the device's memory that one chunk may take, and its most in bytes.
SHARE, MOST = 0.25, 8 << 30
# Images in one device call: what is made once a call is shared, and memory stays small.
IMAGES = 4
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


def sizes(
    network: Network, layers: tuple[str, ...], *, images: int, by_weight: bool, chunk: int | None, batch: int | None
) -> tuple[int, int]:
    """Features and images a device call: those asked for, or what fits."""
    batch = batch or batch_size(network, layers, images=images, by_weight=by_weight)
    return chunk or chunk_size(network, layers, batch=batch, by_weight=by_weight), batch


def batch_size(network: Network, layers: tuple[str, ...], *, images: int, by_weight: bool) -> int:
    """Images a device call: at most `IMAGES`, as few as fill the same number of calls, one where memory is short.

    Features together gain more than images together.
    """
    calls = -(-images // IMAGES)
    several = -(-images // calls)
    roomy = chunk_size(network, layers, batch=several, by_weight=by_weight) == LARGEST
    return several if roomy else 1


def chunk_size(network: Network, layers: tuple[str, ...], *, batch: int, by_weight: bool) -> int:
    """Features a device call: as many as fit with their gradients, statistics and scores, at most `LARGEST`."""
    per_feature = 0
    for layer in (network.layers[name] for name in layers):
        positions = layer.positions[0] * layer.positions[1]
        weights = layer.window[0] * layer.window[1] if by_weight else 1
        # the gradient at the layer and what it is made from; statistic, its update and the scores
        per_feature += 3 * batch * positions * layer.outputs + (2 * weights + 1) * layer.kernels
    budget = min(SHARE * device_memory(), MOST)
    return int(max(1, min(LARGEST, budget // (4 * per_feature))))


def chunk_at(features: Features, start: int, size: int) -> Features:
    """`size` features from `start` on; the last chunk is filled up with the last feature, to run the same program."""
    return features[np.minimum(np.arange(start, start + size), len(features) - 1)]


def in_chunks(features: Features, size: int) -> Iterator[Features]:
    """Chunks of one size, at most all features."""
    size = min(size, len(features))
    for start in range(0, len(features), size):
        yield chunk_at(features, start, size)
