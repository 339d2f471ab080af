"""Saliency criteria: each turns what a layer saw, and how the feature depends on what it said, into kernel scores.

A criterion over images is a few pure functions, for each granularity that is not made of a finer one. Their statistics
add up over images, so that scores do not depend on how images are batched.

Shapes: N images, F features, P positions, K weights of a kernel, I O input and output channels.
"""

from jaxcircuits.criteria import actgrad, force, learned, snip
from jaxcircuits.criteria.baselines import magnitude, random
from jaxcircuits.criteria.common import Criterion
from jaxcircuits.errors import InputError
from jaxcircuits.granularity import check_granularity

ABSOLUTE = ("per_image", "whole_set", "none")
OVER_IMAGES = {"snip": snip, "actgrad": actgrad}
BASELINES = {"magnitude": magnitude, "random": random}
# those whose scores depend on how much is kept; both begin with SNIP's
IN_ROUNDS = {"force": force}
TRAINED = {"learned": learned}
SEEDED = ("random", *TRAINED)
STEPS = {name: room.STEPS for name, room in (IN_ROUNDS | TRAINED).items()}
CRITERIA = (*OVER_IMAGES, *IN_ROUNDS, *BASELINES, *TRAINED)

__all__ = [
    "ABSOLUTE", "BASELINES", "CRITERIA", "IN_ROUNDS", "OVER_IMAGES", "SEEDED", "STEPS", "TRAINED", "Criterion",
    "criterion",
]  # fmt: skip


def criterion(name: str, absolute: str = "per_image", granularity: str = "kernel") -> Criterion:
    """The criterion of that name, or an InputError that lists what there is."""
    if absolute not in ABSOLUTE:
        raise InputError(f"unknown absolute {absolute!r}; expected one of {', '.join(ABSOLUTE)}")
    if name not in OVER_IMAGES and name not in STEPS:
        raise InputError(f"unknown criterion {name!r}; expected one of {', '.join(CRITERIA)}")
    room = OVER_IMAGES.get(name, snip)  # each of FORCE's rounds is SNIP
    check_granularity(granularity)
    if name in TRAINED and granularity != "kernel":
        raise InputError(f"{name} masks are of kernels; {granularity}s are not trained")
    if granularity not in room.CRITERIA:
        raise InputError(f"{name} has no granularity={granularity!r}; expected one of {', '.join(room.CRITERIA)}")
    found = room.CRITERIA[granularity]
    if absolute not in found:
        raise InputError(f"{name} has no absolute={absolute!r}; expected one of {', '.join(found)}")
    return found[absolute]
