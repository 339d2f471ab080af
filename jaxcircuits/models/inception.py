"""Inception v3 as in torchvision: "Rethinking the Inception Architecture for Computer Vision" (arXiv 1512.00567).

Each block takes maps (N, H, W, C) to the channels of all its branches, (N, H', W', O).
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxcircuits.models.common import BasicConv, adaptive_average_pool, flatten, renormalised
from jaxcircuits.pooling import max_pool

Window = int | tuple[int, int]


def chain(x: Array, train: bool, name: str, *convolutions: tuple[int, Window], halve: bool = False) -> Array:
    """Convolutions (channels, window) one after another, named name_1, name_2, ...; the last may halve the maps."""
    for i, (channels, window) in enumerate(convolutions, 1):
        strides, padding = (2, 0) if halve and i == len(convolutions) else (1, None)
        x = BasicConv(channels, window, strides, padding=padding, name=f"{name}_{i}")(x, train)
    return x


def pooled(x: Array, train: bool, channels: int) -> Array:
    """Averages of 3 x 3, zeros at the border among them, and a 1 x 1 convolution."""
    x = nn.avg_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3))
    return BasicConv(channels, 1, name="branch_pool")(x, train)


def beside(x: Array, train: bool, name: str) -> Array:
    """Both sides of a 3 x 3 window, name + a and name + b, which share their input."""
    sides = [BasicConv(384, window, name=name + side)(x, train) for side, window in (("a", (1, 3)), ("b", (3, 1)))]
    return jnp.concatenate(sides, -1)


class BlockA(nn.Module):
    """5 x 5, and two 3 x 3."""

    pool: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        one = BasicConv(64, 1, name="branch1x1")(x, train)
        five = chain(x, train, "branch5x5", (48, 1), (64, 5))
        double = chain(x, train, "branch3x3dbl", (64, 1), (96, 3), (96, 3))
        return jnp.concatenate([one, five, double, pooled(x, train, self.pool)], -1)


class BlockB(nn.Module):
    """Halves the maps."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        three = BasicConv(384, 3, 2, padding=0, name="branch3x3")(x, train)
        double = chain(x, train, "branch3x3dbl", (64, 1), (96, 3), (96, 3), halve=True)
        return jnp.concatenate([three, double, max_pool(x, 3, 2)], -1)


class BlockC(nn.Module):
    """7 x 7 as 1 x 7 and 7 x 1, once and twice, `width` channels in between."""

    width: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        wide, tall = (self.width, (1, 7)), (self.width, (7, 1))
        one = BasicConv(192, 1, name="branch1x1")(x, train)
        seven = chain(x, train, "branch7x7", (self.width, 1), wide, (192, (7, 1)))
        double = chain(x, train, "branch7x7dbl", (self.width, 1), tall, wide, tall, (192, (1, 7)))
        return jnp.concatenate([one, seven, double, pooled(x, train, 192)], -1)


class BlockD(nn.Module):
    """Halves the maps."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        three = chain(x, train, "branch3x3", (192, 1), (320, 3), halve=True)
        seven = chain(x, train, "branch7x7x3", (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3), halve=True)
        return jnp.concatenate([three, seven, max_pool(x, 3, 2)], -1)


class BlockE(nn.Module):
    """3 x 3 as 1 x 3 beside 3 x 1."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        one = BasicConv(320, 1, name="branch1x1")(x, train)
        three = chain(x, train, "branch3x3", (384, 1))
        three = beside(three, train, "branch3x3_2")
        double = chain(x, train, "branch3x3dbl", (448, 1), (384, 3))
        double = beside(double, train, "branch3x3dbl_3")
        return jnp.concatenate([one, three, double, pooled(x, train, 192)], -1)


class AuxiliaryHead(nn.Module):
    """Maps (N, H, W, C) -> logits (N, num_classes)."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = BasicConv(128, 1, name="conv0")(nn.avg_pool(x, (5, 5), (3, 3)), train)
        x = BasicConv(768, 5, padding=0, name="conv1")(x, train)
        return nn.Dense(self.num_classes, name="fc")(flatten(adaptive_average_pool(x, 1)))


class Outputs(NamedTuple):
    """Logits (N, num_classes) in training: of the network, and of its head halfway."""

    logits: Array
    aux_logits: Array


class Inception3(nn.Module):
    """Images (N, H, W, 3) -> logits (N, num_classes); in training also those of the auxiliary head.

    Attributes:
        transform_input: see `renormalised`.
    """

    num_classes: int = 1000
    transform_input: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array | Outputs:
        x = renormalised(x) if self.transform_input else x
        x = BasicConv(32, 3, 2, padding=0, name="Conv2d_1a_3x3")(x, train)
        x = BasicConv(32, 3, padding=0, name="Conv2d_2a_3x3")(x, train)
        x = BasicConv(64, 3, name="Conv2d_2b_3x3")(x, train)
        x = max_pool(x, 3, 2)
        x = BasicConv(80, 1, name="Conv2d_3b_1x1")(x, train)
        x = BasicConv(192, 3, padding=0, name="Conv2d_4a_3x3")(x, train)
        x = max_pool(x, 3, 2)
        for letter, pool in zip("bcd", (32, 64, 64), strict=True):
            x = BlockA(pool, name=f"Mixed_5{letter}")(x, train)
        x = BlockB(name="Mixed_6a")(x, train)
        for letter, width in zip("bcde", (128, 160, 160, 192), strict=True):
            x = BlockC(width, name=f"Mixed_6{letter}")(x, train)
        heads = []
        if train or self.is_initializing():
            heads.append(AuxiliaryHead(self.num_classes, name="AuxLogits")(x, train))
        x = BlockD(name="Mixed_7a")(x, train)
        x = BlockE(name="Mixed_7b")(x, train)
        x = BlockE(name="Mixed_7c")(x, train)
        x = flatten(adaptive_average_pool(x, 1))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = nn.Dense(self.num_classes, name="fc")(x)
        return Outputs(x, *heads) if train else x


VARIANTS = {"inception_v3": Inception3}
AUXILIARY = ("AuxLogits",)
SEEN = {"inception_v3": {"input_size": 299, "resize_size": 342}}
