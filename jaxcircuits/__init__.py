"""jaxcircuits: feature-preserving circuits of convolutional networks, thousands at once, in JAX.

For a feature of a network (a channel, a direction, one position) a circuit is the small set of 2-D convolution kernels
that computes it. Images and weights become scores, scores masks, masks circuits:

    model = jc.load("alexnet", weights="lpips")
    images = jc.read_images("photos", model)
    features = jc.Features("features.10", channels=[9, 161])
    scores = jc.score(model, images, features, criterion="snip")
    masks = jc.top_kernels(scores, keep=0.05)
    r = jc.correlation(model, images, features, masks)
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `_ROOMS` below says the same to Python, which imports a room when its name is first asked for
    from jaxcircuits import pytorch
    from jaxcircuits.ablation import mean_offsets
    from jaxcircuits.atlas.building import build_atlas
    from jaxcircuits.atlas.reading import Atlas
    from jaxcircuits.atlas.verifying import verify as verify_atlas
    from jaxcircuits.bridge import from_nnx
    from jaxcircuits.circuit import Circuit
    from jaxcircuits.compact import compact
    from jaxcircuits.compare import compare
    from jaxcircuits.comparison import Comparison
    from jaxcircuits.data import Images, read_images
    from jaxcircuits.diagram import Diagram, diagram
    from jaxcircuits.errors import InputError
    from jaxcircuits.evaluation import Evaluation
    from jaxcircuits.export import export_circuit
    from jaxcircuits.faithfulness import correlation, curve, evaluate
    from jaxcircuits.features import Features
    from jaxcircuits.granularity import masks_at, scores_at
    from jaxcircuits.jobs import extract
    from jaxcircuits.loading import load
    from jaxcircuits.masks import complement, iou, stability, top_kernels
    from jaxcircuits.model import Model
    from jaxcircuits.nulls import Nulls, against_nulls, random_masks
    from jaxcircuits.paths import effective_kernels, relevant_kernels
    from jaxcircuits.pictures import Patches, Visualisation, top_patches, visualise
    from jaxcircuits.receptive import receptive_fields
    from jaxcircuits.report import report
    from jaxcircuits.scores import Scores
    from jaxcircuits.scoring import score
    from jaxcircuits.subfeatures import ImageScores, Parts, Trajectories, image_scores, separate, trajectories

__version__ = "0.1.0"

__all__ = [
    "Atlas",
    "Circuit",
    "Comparison",
    "Diagram",
    "Evaluation",
    "Features",
    "ImageScores",
    "Images",
    "InputError",
    "Model",
    "Nulls",
    "Parts",
    "Patches",
    "Scores",
    "Trajectories",
    "Visualisation",
    "against_nulls",
    "build_atlas",
    "compact",
    "compare",
    "complement",
    "correlation",
    "curve",
    "diagram",
    "effective_kernels",
    "evaluate",
    "export_circuit",
    "extract",
    "from_nnx",
    "image_scores",
    "iou",
    "load",
    "masks_at",
    "mean_offsets",
    "pytorch",
    "random_masks",
    "read_images",
    "receptive_fields",
    "relevant_kernels",
    "report",
    "score",
    "scores_at",
    "separate",
    "stability",
    "top_kernels",
    "top_patches",
    "trajectories",
    "verify_atlas",
    "visualise",
]

_ROOMS = {
    "Atlas": "atlas.reading",
    "Circuit": "circuit",
    "Comparison": "comparison",
    "Diagram": "diagram",
    "Evaluation": "evaluation",
    "Features": "features",
    "ImageScores": "subfeatures",
    "Images": "data",
    "InputError": "errors",
    "Model": "model",
    "Nulls": "nulls",
    "Parts": "subfeatures",
    "Patches": "pictures",
    "Scores": "scores",
    "Trajectories": "subfeatures",
    "Visualisation": "pictures",
    "against_nulls": "nulls",
    "build_atlas": "atlas.building",
    "compact": "compact",
    "compare": "compare",
    "complement": "masks",
    "correlation": "faithfulness",
    "curve": "faithfulness",
    "diagram": "diagram",
    "effective_kernels": "paths",
    "evaluate": "faithfulness",
    "export_circuit": "export",
    "extract": "jobs",
    "from_nnx": "bridge",
    "image_scores": "subfeatures",
    "iou": "masks",
    "load": "loading",
    "masks_at": "granularity",
    "mean_offsets": "ablation",
    "pytorch": "pytorch:",
    "random_masks": "nulls",
    "read_images": "data",
    "receptive_fields": "receptive",
    "relevant_kernels": "paths",
    "report": "report",
    "score": "scoring",
    "scores_at": "granularity",
    "separate": "subfeatures",
    "stability": "masks",
    "top_kernels": "masks",
    "top_patches": "pictures",
    "trajectories": "subfeatures",
    "verify_atlas": "atlas.verifying:verify",
    "visualise": "pictures",
}  # where each name is; after a colon, what it is called there, if it is not the room itself


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room, colon, there = _ROOMS[name].partition(":")
    found = import_module(f"{__name__}.{room}")
    if there or not colon:
        found = getattr(found, there or name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """`compare`, `diagram` and `report` are functions and rooms. Python sets a room that is imported as an attribute of
    its package, which here would hide the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _ROOMS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
