"""A circuit's network without its dead channels, as a PyTorch module."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from jaxcircuits.circuit import Circuit
from jaxcircuits.compact.plan import plan
from jaxcircuits.model import Model
from jaxcircuits.packages import needed
from jaxcircuits.pytorch.networks import fill, torchvision_network

if TYPE_CHECKING:
    from torch import fx, nn


def compact(model: Model, circuit: Circuit, *, network: nn.Module | None = None) -> fx.GraphModule:
    """A smaller PyTorch network that computes a circuit's feature: `jaxcircuits.compact` for PyTorch.

    It is torchvision's network, up to the feature, with the channels that the circuit needs; its modules keep their
    names. Images (N, 3, H, W) give the feature (N, 1, H, W), or (N, 1) in a dense layer.

    Args:
        model: the full network.
        circuit: of that network.
        network: a PyTorch network whose layers have the model's names and that torch.fx can trace; its weights are the
            model's where both have them. By default torchvision's of the model's name. It is left as it is.

    Returns:
        The module, in evaluation mode; its `code` can be read.

    Raises:
        InputError: the circuit is of another network, weights are missing, or there is no PyTorch network that fits.
    """
    needed("torch", "a compact PyTorch network")
    found = plan(model, circuit)
    if network is None:
        network = torchvision_network(model)
    else:
        network = copy.deepcopy(network).eval()
        fill(network, model.variables, missing=model.missing)
    from jaxcircuits.pytorch.narrow import narrowed

    return narrowed(network, found, (model.channels, model.input_size, model.input_size))
