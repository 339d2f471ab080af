"""Scores as they are kept: how salient each kernel is for each feature, and how that was found."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
from jax import Array


class Record(NamedTuple):
    """How scores came about; stands in the manifest of every circuit made of them.

    Attributes:
        criterion, absolute, seed, precision, keep, kernels, steps, schedule, granularity: as asked for.
        objective: of the features.
        images: how many.
        sparse: whether gradients of some layers were computed on their support alone, which is the same to rounding.
    """

    criterion: str
    absolute: str | None
    objective: str
    images: int
    seed: int | None
    precision: str
    sparse: bool = False
    keep: float | None = None
    kernels: int | None = None
    steps: int | None = None
    schedule: tuple[int, ...] | None = None
    granularity: str = "kernel"


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "relevant"], meta_fields=["layers", "record"]
)
@dataclass(frozen=True)
class Scores:
    """Saliency of each kernel for each feature; or of each weight or filter.

    Attributes:
        values: {layer: (F, I, O) float32}, of weights (F, K, I, O), of filters (F, O); at least 0 unless
            absolute="none"; 0 where not relevant.
        relevant: {layer: (F, I, O) bool}, the kernels from which a path leads to the feature, at any granularity.
        layers: their names in call order (`jit` sorts dictionaries).
        record: how they came about.
    """

    values: Mapping[str, Array]
    relevant: Mapping[str, Array]
    layers: tuple[str, ...]
    record: Record
