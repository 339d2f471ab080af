"""Small PyTorch modules."""

from __future__ import annotations

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
