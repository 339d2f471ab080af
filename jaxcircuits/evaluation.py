"""Circuits that have been run on images: all measures of them in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxcircuits import measures
from jaxcircuits.measures import Moments


@dataclass(frozen=True, eq=False)
class Evaluation:
    """K circuits of F features on N images, and every measure of them; `jaxcircuits.measures` has the equations.

    Attributes:
        labels: the features', F of them.
        moments: of the circuits (F, K, N).
        ablated: of the empty circuit (F, 1, N).
    """

    labels: tuple[str, ...]
    moments: Moments
    ablated: Moments

    @property
    def constant(self) -> np.ndarray:
        """Which circuits compute one and the same number everywhere, so that r is not defined: (F, K) bool."""
        return measures.pooled(self.moments).constant_x[..., 0]

    def correlation(self, weights: np.ndarray | None = None) -> np.ndarray:
        """`pearson`: (F, K), or (F, K, B) for weights (B, N)."""
        return measures.pearson(self.moments, weights)

    def mean_squared_error(self, weights: np.ndarray | None = None) -> np.ndarray:
        """`mean_squared_error`: (F, K), or (F, K, B) for weights (B, N)."""
        return measures.mean_squared_error(self.moments, weights)

    def relative_squared_error(self, weights: np.ndarray | None = None) -> np.ndarray:
        """`relative_squared_error`: (F, K), or (F, K, B) for weights (B, N)."""
        return measures.relative_squared_error(self.moments, weights)

    def faithfulness(self, weights: np.ndarray | None = None) -> np.ndarray:
        """`normalised_faithfulness`: (F, K), or (F, K, B) for weights (B, N)."""
        return measures.normalised_faithfulness(self.moments, self.ablated, weights)

    def cpr(self, keeps: Sequence[float]) -> np.ndarray:
        """`cpr` of circuits that keep these fractions: (F,)."""
        return measures.cpr(self.faithfulness(), keeps)

    def cmd(self, keeps: Sequence[float]) -> np.ndarray:
        """`cmd` of circuits that keep these fractions: (F,)."""
        return measures.cmd(self.faithfulness(), keeps)

    def top_image_overlap(self, top: int = 10) -> np.ndarray:
        """`top_image_overlap`: (F, K)."""
        return measures.top_image_overlap(self.moments, top)

    def interval(
        self,
        measure: Callable[[np.ndarray], np.ndarray] | None = None,
        *,
        level: float = 0.95,
        number: int = 1000,
        seed: int = 0,
    ) -> np.ndarray:
        """Bootstrap interval over images of a measure, r if none is given: (F, K, 2).

        For example `e.interval(e.faithfulness)`; any function of weights (B, N) will do.
        """
        return measures.interval(
            (measure or self.correlation)(measures.resamples(self.moments.shape[2], number, seed)), level
        )

    def in_subsets(
        self, measure: Callable[[np.ndarray], np.ndarray] | None = None, *, parts: int = 2, seed: int = 0
    ) -> np.ndarray:
        """A measure, r if none is given, in each of P subsets of the images that share none: (F, K, P)."""
        return (measure or self.correlation)(measures.subsets(self.moments.shape[2], parts, seed))
