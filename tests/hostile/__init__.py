"""Hostile and broken input: valid files of every kind that is read, made wrong in their structure, and what may come of
them.

`CASES[kind](rng, place)` writes one such file, or a folder of them, below `place / "in"` and returns what reads it.
`survival.survives` runs that and holds it to what docs/security.md promises. Everything is drawn from `rng`, so that
hypothesis may choose, or a seed.
"""

from tests.hostile.arrays import array
from tests.hostile.atlases import atlas
from tests.hostile.circuits import circuit
from tests.hostile.names import feature, page
from tests.hostile.pictures import image
from tests.hostile.survival import Case
from tests.hostile.weights import checkpoint, kernels, state_dict, state_file

CASES: dict[str, Case] = {
    "circuit": circuit,
    "atlas": atlas,
    "state_dict": state_dict,
    "state_file": state_file,
    "kernels": kernels,
    "checkpoint": checkpoint,
    "image": image,
    "array": array,
    "feature": feature,
    "page": page,
}
