"""Circuits in PyTorch. Nothing here imports PyTorch before it is used."""

from jaxcircuits.pytorch.compacting import compact
from jaxcircuits.pytorch.networks import torchvision_network

__all__ = ["compact", "torchvision_network"]
