"""PyTorch's side of a model: torchvision's own network with the model's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxcircuits.errors import InputError
from jaxcircuits.layers import Variables
from jaxcircuits.model import Model
from weights_conversion import ConversionError, to_torch
from weights_conversion.sources import torchvision_models

if TYPE_CHECKING:
    from torch import nn


def torchvision_network(model: Model) -> nn.Module:
    """torchvision's network of a model's name, with its weights and as many classes, in evaluation mode.

    What is missing stays as drawn.

    Args:
        model: whose name torchvision knows.

    Raises:
        InputError: torchvision has no such network, or is missing itself.
    """
    try:
        models = torchvision_models()
    except ConversionError as error:
        raise InputError(str(error)) from None
    if model.name not in models.list_models():
        raise InputError(f"torchvision has no network {model.name!r}; give one whose layers have the model's names")
    options = {} if model.transform_input is None else {"transform_input": model.transform_input, "init_weights": False}
    classes = list(model.layers.values())[-1].outputs
    network = models.get_model(model.name, weights=None, num_classes=classes, **options)
    fill(network, model.variables, missing=model.missing)
    return network.eval()


def fill(network: nn.Module, variables: Variables, *, missing: tuple[str, ...] = ()) -> None:
    """Put all weights into a network that it has a place for; a head of other classes keeps its own.

    Raises:
        InputError: there is a variable that PyTorch has no name for.
    """
    import torch

    there = network.state_dict()
    try:
        given = to_torch(variables, missing=missing)
    except ConversionError as error:  # a module of the user's own
        raise InputError(f"the model's weights have no place in a PyTorch network: {error}") from None
    state = {k: torch.from_numpy(v.copy()) for k, v in given.items() if k in there}
    there |= {k: v for k, v in state.items() if v.shape == there[k].shape}  # as it is, with its metadata
    network.load_state_dict(there)
