"""A circuit put into a PyTorch network: for good, with `torch.nn.utils.prune`, or for a while."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcircuits.circuit import Circuit
from jaxcircuits.errors import InputError, nearest
from jaxcircuits.packages import needed

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle


class Masked:
    """A circuit in a network; taken out again by `remove`, or at the end of a `with` block."""

    def __init__(self, layers: list[nn.Module], hooks: list[RemovableHandle]):
        self._layers, self._hooks = layers, hooks

    def remove(self) -> None:
        """Make the network what it was. Nothing happens the second time."""
        from torch.nn.utils import parametrize

        for hook in self._hooks:
            hook.remove()
        for layer in self._layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        self._layers, self._hooks = [], []

    def __enter__(self) -> Masked:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def masked(network: nn.Module, circuit: Circuit) -> Masked:
    """Put a circuit into a PyTorch network for a while: `with masked(network, circuit): ...`.

    Weights are multiplied by the masks whenever they are used (`torch.nn.utils.parametrize`), and mean ablation's
    offsets are added to the layers' outputs by hooks. Gradients reach the network's own weights. While it lasts, the
    state dict has other names.

    Args:
        network: has convolutions and linear layers with the names of the circuit's, as torchvision's have.
        circuit: any.

    Raises:
        InputError: the network lacks a layer of the circuit's, its shape is another, or it is masked already.
    """
    needed("torch", "masking a PyTorch network")
    from torch.nn.utils import parametrize

    from jaxcircuits.pytorch.parts import Mask

    found = list(_layers(network, circuit, alone=True))
    for layer, mask, _ in found:
        parametrize.register_parametrization(layer, "weight", Mask(mask), unsafe=True)  # it keeps shape and type
    return Masked([layer for layer, _, _ in found], _offset(found))


def prune(network: nn.Module, circuit: Circuit) -> list[RemovableHandle]:
    """Put a circuit into a PyTorch network with `torch.nn.utils.prune.custom_from_mask`, layer by layer.

    What is known of pruned networks holds: `weight_orig` and `weight_mask`, and `torch.nn.utils.prune.remove` makes the
    masks permanent. Masks multiply those that are there already.

    Args:
        network, circuit: as for `masked`.

    Returns:
        The handles of the hooks that add mean ablation's offsets to the layers' outputs; none with zero ablation.

    Raises:
        InputError: as for `masked`.
    """
    needed("torch", "pruning a PyTorch network")
    from torch.nn.utils import prune as torch_prune

    found = list(_layers(network, circuit, alone=False))
    for layer, mask, _ in found:
        torch_prune.custom_from_mask(layer, "weight", mask.to(layer.weight.device).expand_as(layer.weight))
    return _offset(found)


def _offset(found: list[tuple[Any, Any, Any]]) -> list[RemovableHandle]:
    """Hooks that add the offsets."""

    def hook(offset):
        return lambda layer, inputs, output: output + offset.to(output.device, output.dtype)

    return [layer.register_forward_hook(hook(offset)) for layer, _, offset in found if offset is not None]


def _layers(network: nn.Module, circuit: Circuit, *, alone: bool) -> Iterator[tuple[Any, Any, Any]]:
    """Each layer of a circuit in a network, its mask and its offset, if there is one, of shapes that broadcast.

    With `alone`, nothing else may have been done to a layer's weight.
    """
    import torch
    from torch.nn.utils import parametrize

    known = {n: m for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)}
    for name, mask in circuit.masks.items():
        if name not in known:
            raise InputError(f"the PyTorch network has no layer {name!r}; {nearest(name, known)}")
        layer, by_output = known[name], np.ascontiguousarray(mask.T)
        if tuple(layer.weight.shape[:2]) != by_output.shape:
            raise InputError(
                f"the circuit's mask of {name!r} is {by_output.shape}, outputs by inputs; "
                f"the PyTorch network's layer is {tuple(layer.weight.shape[:2])}"
            )
        given = "weight" in dict(layer.named_parameters(recurse=False))
        if not given and (alone or parametrize.is_parametrized(layer, "weight")):
            raise InputError(f"the weight of {name!r} in the PyTorch network is pruned, masked or parametrised already")
        ones = (1,) * (layer.weight.ndim - 2)
        offset = None if circuit.offsets is None else circuit.offsets.get(name)
        if offset is not None:
            offset = torch.from_numpy(np.array(offset, np.float32)).reshape(-1, *ones)
        yield layer, torch.from_numpy(by_output).reshape(*by_output.shape, *ones), offset
