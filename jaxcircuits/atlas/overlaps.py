"""How circuits overlap: intersections of many masks as matrix products, block by block of kernels.

NumPy alone, on packed masks. Features of different layers have masks of different layers; where a circuit has none, it
has no kernels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

# Kernels of one matrix product: 1,152 features then take 38 MB. A multiple of 8, and far below 2 ** 24, up to which
# float32 counts exactly.
BLOCK = 8192


def intersections(masks: Iterable[tuple[np.ndarray, np.ndarray]], features: int) -> np.ndarray:
    """How many kernels each two circuits share: (F, F) int64; the diagonal is their sizes.

    Args:
        masks: for each layer, the circuits that have it (n,) as numbers from 0 to F - 1, and their bits (n, bytes).
        features: F.
    """
    shared = np.zeros((features, features), np.int64)
    for rows, bits in masks:
        total = np.zeros((len(rows), len(rows)))
        for start in range(0, bits.shape[1], BLOCK // 8):
            kept = np.unpackbits(bits[:, start : start + BLOCK // 8], axis=1)
            kept = kept[:, kept.any(0)].astype(np.float32)
            total += kept @ kept.T
        shared[np.ix_(rows, rows)] += total.astype(np.int64)
    return shared


def iou_of(shared: np.ndarray) -> np.ndarray:
    """Intersection over union (F, F) from `intersections`; nan where both circuits are empty."""
    sizes = np.diag(shared)
    either = sizes[:, None] + sizes - shared
    return np.divide(shared, either, out=np.full(shared.shape, np.nan), where=either > 0)


def against(one: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """How many kernels one circuit shares with each of n, and how many these have: twice (n,).

    Args:
        one: {layer: (bytes,) uint8}.
        others: {layer: (n, bytes) uint8}; the layers need not be the same.
    """
    sizes = sum(np.bitwise_count(bits).sum(1, dtype=np.int64) for bits in others.values())
    both = [name for name in others if name in one]
    shared = sum((np.bitwise_count(others[n] & one[n]).sum(1, dtype=np.int64) for n in both), np.zeros((), np.int64))
    return np.broadcast_to(shared, np.shape(sizes)), np.asarray(sizes)


def use_counts(bits: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """How many of n circuits have each kernel: bits (n, bytes) -> (O, I)."""
    kernels = shape[0] * shape[1]
    found = np.zeros(8 * bits.shape[1], np.int64)
    for start in range(0, bits.shape[1], BLOCK // 8):
        part = np.unpackbits(bits[:, start : start + BLOCK // 8], axis=1).sum(0, dtype=np.int64)
        found[8 * start : 8 * start + len(part)] = part
    return found[:kernels].reshape(shape)
