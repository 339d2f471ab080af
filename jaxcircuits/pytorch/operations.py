"""What PyTorch's operations do with channels: those that keep each to itself, join two values, or change one."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn
from torch.nn import functional as F

# what works channel by channel, and place by place, whatever the channels' axis
PLACES = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Hardsigmoid, nn.Hardswish, nn.Dropout, nn.Identity)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
PLACE_FUNCTIONS = {
    *(torch.relu, torch.sigmoid, F.relu, F.relu6, F.silu, F.gelu, F.sigmoid, F.hardsigmoid, F.hardswish, F.dropout),
    *("relu", "sigmoid", "contiguous", "clone"),
}
POOL_FUNCTIONS = {F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d}
JOINS = {
    operator.add: operator.add,
    operator.iadd: operator.add,
    operator.sub: operator.sub,
    operator.mul: operator.mul,
    operator.imul: operator.mul,
    torch.add: torch.add,
    torch.mul: torch.mul,
}
# operators that change a tensor in place, beside what PyTorch writes with `_` at the end
IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv}


def in_place(network: nn.Module, node: fx.Node) -> bool:
    """Whether a node of a network's graph changes its first argument, a tensor."""
    if not (node.args and isinstance(node.args[0], fx.Node) and "tensor_meta" in node.args[0].meta):
        return False
    if node.op == "call_module":
        return getattr(network.get_submodule(str(node.target)), "inplace", False) is True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    inner = name.endswith("_") and not name.endswith("__")
    return node.op != "get_attr" and (inner or node.target in IN_PLACE or node.kwargs.get("inplace") is True)
