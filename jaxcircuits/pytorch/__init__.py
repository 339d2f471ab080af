"""Circuits in PyTorch: put into its networks, made into smaller ones, written to files, and masks and scores that other
programs saved with it. Nothing here imports PyTorch before it is used.

masking.py puts circuits into networks; compacting.py makes compact ones, by narrow.py; files.py writes those;
importing.py reads masks and scores; networks.py has torchvision's networks.
"""

from jaxcircuits.pytorch.compacting import compact
from jaxcircuits.pytorch.files import export_compact, to_onnx
from jaxcircuits.pytorch.importing import circuits_of_scores, read_kernels, read_masks, read_scores
from jaxcircuits.pytorch.masking import Masked, masked, prune
from jaxcircuits.pytorch.networks import torchvision_network

__all__ = [
    "Masked",
    "circuits_of_scores",
    "compact",
    "export_compact",
    "masked",
    "prune",
    "read_kernels",
    "read_masks",
    "read_scores",
    "to_onnx",
    "torchvision_network",
]
