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
from jaxcircuits.scores import Scores, score
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
