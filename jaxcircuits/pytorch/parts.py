"""PyTorch modules: a mask on a weight, and layers with other channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Mask(nn.Module):
    """A weight times a mask."""

    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.mask.to(weight.device)


def like(module: nn.Conv2d | nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None, groups: int) -> nn.Module:
    """A layer of the same geometry with other channels."""
    if isinstance(module, nn.Linear):
        small = nn.Linear(weight.shape[1], len(weight), bias is not None)
    else:
        geometry = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        options: Any = {name: getattr(module, name) for name in geometry}
        small = nn.Conv2d(weight.shape[1] * groups, len(weight), groups=groups, bias=bias is not None, **options)
    small.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return small
