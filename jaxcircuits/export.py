"""Circuits for PyTorch: masks for `torch.nn.utils.prune`, and weights with masks multiplied and offsets folded in."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from jaxcircuits.ablation import check_offsets, folded
from jaxcircuits.circuit import Circuit
from jaxcircuits.errors import InputError
from jaxcircuits.features import find_layer
from jaxcircuits.files import check_writable, folder
from jaxcircuits.model import Model
from jaxcircuits.variables import with_masks
from weights_conversion import ConversionError, StateDict, to_torch, write_state

ENDINGS = (".masks.pt", ".masks.safetensors", ".weights.pth")

USAGE = """\
import torch
from torch.nn.utils import prune

masks = torch.load({masks!r})
for name, mask in masks.items():
    module = model.get_submodule(name.removesuffix(".weight_mask"))
    prune.custom_from_mask(module, "weight", mask.expand_as(module.weight))

# or, with the masks multiplied into the weights
model.load_state_dict(torch.load({weights!r}), strict=False)
"""


def torch_masks(model: Model, circuit: Circuit) -> StateDict:
    """Masks in PyTorch's order and names: {"features.0.weight_mask": bool (O, I, 1, 1)}; dense layers (O, I).

    Raises:
        InputError: the circuit is of another network.
    """
    circuit.features.resolve(model.layers, places=False)
    masks = {}
    for name, mask in circuit.masks.items():
        layer = find_layer(model.layers, name)
        if mask.shape != (layer.inputs, layer.outputs):
            raise InputError(
                f"the circuit's mask of {name!r} is {mask.shape}; this model has {(layer.inputs, layer.outputs)}"
            )
        by_output = np.ascontiguousarray(mask.T)
        masks[f"{name}.weight_mask"] = by_output if layer.kind == "dense" else by_output[:, :, None, None]
    return masks


def torch_weights(model: Model, circuit: Circuit) -> StateDict:
    """The circuit's network as a torchvision state dict: weights times masks; what the source lacks is left out.

    Mean ablation's offsets are added to biases or, where a convolution has none, taken off the running mean of its
    BatchNorm: what leaves BatchNorm is the circuit's, what enters it is so up to the offset.

    Raises:
        InputError: the circuit is of another network, an offset has no place in it, or PyTorch has no name for a
            variable of the module.
    """
    torch_masks(model, circuit)  # refuses another network's circuit
    masked = with_masks(model.network(), model.variables, circuit.masks)
    if circuit.offsets is not None:
        given, masks = ({n: a[None] for n, a in arrays.items()} for arrays in (circuit.offsets, circuit.masks))
        check_offsets(model.layers, given, masks)
        masked = folded(model.network(), masked, circuit.offsets)
    try:
        return to_torch(masked, extras=model.extras, missing=model.missing)
    except ConversionError as error:  # a module of the user's own
        raise InputError(str(error)) from error


def export_circuit(model: Model, circuit: Circuit, stem: str | Path, *, force: bool = False) -> list[Path]:
    """Write `STEM.masks.pt`, `STEM.masks.safetensors` and `STEM.weights.pth`, each whole or not at all.

    Args:
        model: the full network.
        circuit: of that network.
        stem: path of the files without their endings.
        force: overwrite files that exist.

    Returns:
        The three paths.

    Raises:
        InputError: the circuit is of another network, PyTorch is missing, the means of removed kernels have no place in
            the network, or a file exists or cannot be written.
    """
    paths = free_paths(stem, force=force)
    masks = torch_masks(model, circuit)
    contents = (masks, masks, torch_weights(model, circuit))
    try:
        with folder(paths[0].parent), tempfile.TemporaryDirectory(prefix=".export-", dir=paths[0].parent) as beside:
            for path, state in zip(paths, contents, strict=True):
                write_state(Path(beside, path.name), state)
            for path in paths:  # all three, or none of them
                Path(beside, path.name).replace(path)
    except ConversionError as error:
        raise InputError(str(error)) from error
    except OSError as error:
        raise InputError(f"{str(paths[0].parent)!r} cannot be written: {error.strerror or error}") from error
    return paths


def free_paths(stem: str | Path, *, force: bool) -> list[Path]:
    """The three files of an export, or an InputError if they cannot be written, or exist and `force` is not set."""
    paths = [Path(f"{stem}{ending}") for ending in ENDINGS]
    for path in paths:
        check_writable(path)
        if not force and os.path.lexists(path):
            raise InputError(f"{str(path)!r} exists; --force (force=True) overwrites it")
    return paths
