"""PyTorch weights to Flax and back, bit for bit. It knows tensors, names, shapes and files, and no model."""

from weights_conversion.checkpoint import is_checkpoint, load_checkpoint, save_checkpoint
from weights_conversion.errors import ConversionError
from weights_conversion.files import read_file, write_state
from weights_conversion.rules import Converted, StateDict, Variables, digest, to_flax, to_torch
from weights_conversion.sources import read_preprocessing, read_state

__all__ = [
    "ConversionError",
    "Converted",
    "StateDict",
    "Variables",
    "digest",
    "is_checkpoint",
    "load_checkpoint",
    "read_file",
    "read_preprocessing",
    "read_state",
    "save_checkpoint",
    "to_flax",
    "to_torch",
    "write_state",
]
