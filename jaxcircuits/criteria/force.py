r"""FORCE: SNIP in rounds, each in the circuit that the round before has left: kernels are scored for what is kept.

Of K0 relevant kernels k are kept in T rounds. Round t scores the network whose weights are m w, where the mask m holds
the k_t kernels of highest score so far, with respect to m: a kernel that was dropped still has a score, |w dL/d(m w)|,
and can come back.

    k_t = ceil(exp(t/T ln k + (1 - t/T) ln K0))  for t = 1 ... T-1,    k_T = k

The first scores are SNIP's, those of the last round are the result, and the circuit is their top k. Absolute values are
taken as for SNIP. FORCE is chaotic: one kernel fewer in each round exchanges a third of the mask, at equal quality.

References:
    de Jorge et al., "Progressive Skeletonization: Trimming more fat from a network at initialization" (arXiv
    2006.09081); for features: Hamblin, Konkle, Alvarez (arXiv 2206.01627).
"""

import numpy as np

STEPS = 10  # the paper's number of rounds


def counts(relevant: np.ndarray, kept: np.ndarray, steps: int = STEPS) -> np.ndarray:
    """How many kernels each round keeps: K0 (F,), k (F,) -> (T, F)."""
    share = np.arange(1, steps)[:, None] / steps
    between = np.ceil(np.exp(share * np.log(kept) + (1 - share) * np.log(relevant))).astype(int)
    return np.concatenate([between, np.asarray(kept, int)[None]])
