"""GoogLeNet as in torchvision, with BatchNorm: "Going Deeper with Convolutions" (arXiv 1409.4842)."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxcircuits.models.common import BasicConv, adaptive_average_pool, flatten, renormalised
from jaxcircuits.pooling import max_pool

INCEPTIONS = {  # channels of branch1, of branch2's and branch3's two convolutions, and of branch4
    "3a": (64, (96, 128), (16, 32), 32),
    "3b": (128, (128, 192), (32, 96), 64),
    "4a": (192, (96, 208), (16, 48), 64),
    "4b": (160, (112, 224), (24, 64), 64),
    "4c": (128, (128, 256), (24, 64), 64),
    "4d": (112, (144, 288), (32, 64), 64),
    "4e": (256, (160, 320), (32, 128), 128),
    "5a": (256, (160, 320), (32, 128), 128),
    "5b": (384, (192, 384), (48, 128), 128),
}
HEADS = {"4a": "aux1", "4d": "aux2"}  # auxiliary ones, and what they stand behind


class Inception(nn.Module):
    """Four branches side by side: (N, H, W, C) -> (N, H, W, the sum of their channels)."""

    branch1: int
    branch2: tuple[int, int]
    branch3: tuple[int, int]
    branch4: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        branches = [BasicConv(self.branch1, 1, name="branch1")(x, train)]
        # 3 x 3 in both, where the paper has 5 x 5 in the second: torchvision's weights were trained so
        for name, (reduced, width) in ("branch2", self.branch2), ("branch3", self.branch3):
            y = BasicConv(reduced, 1, name=f"{name}.0")(x, train)
            branches.append(BasicConv(width, 3, name=f"{name}.1")(y, train))
        branches.append(BasicConv(self.branch4, 1, name="branch4.1")(max_pool(x, 3, 1, 1, ceil_mode=True), train))
        return jnp.concatenate(branches, -1)


class AuxiliaryHead(nn.Module):
    """Maps (N, H, W, C) -> logits (N, num_classes)."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = flatten(BasicConv(128, 1, name="conv")(adaptive_average_pool(x, 4), train))
        x = nn.relu(nn.Dense(1024, name="fc1")(x))
        x = nn.Dropout(0.7, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="fc2")(x)


class Outputs(NamedTuple):
    """Logits (N, num_classes) in training: of the network, and of its heads halfway."""

    logits: Array
    aux_logits2: Array
    aux_logits1: Array


class GoogLeNet(nn.Module):
    """Images (N, H, W, 3) -> logits (N, num_classes); in training also those of the auxiliary heads.

    Attributes:
        transform_input: see `renormalised`.
    """

    num_classes: int = 1000
    transform_input: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array | Outputs:
        x = renormalised(x) if self.transform_input else x
        x = BasicConv(64, 7, 2, name="conv1")(x, train)
        x = max_pool(x, 3, 2, ceil_mode=True)
        x = BasicConv(64, 1, name="conv2")(x, train)
        x = BasicConv(192, 3, name="conv3")(x, train)
        x = max_pool(x, 3, 2, ceil_mode=True)
        heads = {}
        for place, channels in INCEPTIONS.items():
            x = Inception(*channels, name=f"inception{place}")(x, train)
            if place == "3b":
                x = max_pool(x, 3, 2, ceil_mode=True)
            if place == "4e":
                x = max_pool(x, 2, 2, ceil_mode=True)
            if place in HEADS and (train or self.is_initializing()):
                heads[HEADS[place]] = AuxiliaryHead(self.num_classes, name=HEADS[place])(x, train)
        x = flatten(adaptive_average_pool(x, 1))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        x = nn.Dense(self.num_classes, name="fc")(x)
        return Outputs(x, heads["aux2"], heads["aux1"]) if train else x


VARIANTS = {"googlenet": GoogLeNet}
AUXILIARY = tuple(HEADS.values())
