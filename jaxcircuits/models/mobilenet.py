"""MobileNet as in torchvision: "MobileNetV2" (arXiv 1801.04381) and "Searching for MobileNetV3" (arXiv 1905.02244)."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
from jax import Array
from jax.nn import hard_sigmoid, hard_swish, relu, relu6

from jaxcircuits.models.common import ConvNorm, SqueezeExcite, conv_norm, divisible, identity

STAGES = (  # of MobileNetV2: expansion, channels, blocks, strides of the first
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class LinearBottleneck(nn.Module):
    """Expanded, filtered channel by channel, projected without activation, added to the input where shapes allow."""

    features: int
    expansion: int
    strides: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y, width, place = x, x.shape[-1] * self.expansion, 0
        if self.expansion > 1:
            y = ConvNorm(width, 1, activation=relu6, name="conv.0")(y, train)
            place = 1
        y = ConvNorm(width, 3, self.strides, groups=width, activation=relu6, name=f"conv.{place}")(y, train)
        y = conv_norm(y, train, f"conv.{place + 1}", self.features)
        return x + y if self.strides == 1 and x.shape == y.shape else y


class MobileNetV2(nn.Module):
    """Images (N, H, W, 3) -> logits (N, num_classes)."""

    num_classes: int = 1000

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        place = itertools.count(1)
        x = ConvNorm(32, 3, 2, activation=relu6, name="features.0")(x, train)
        for expansion, width, blocks, strides in STAGES:
            for block in range(blocks):
                first = strides if block == 0 else 1
                x = LinearBottleneck(width, expansion, first, name=f"features.{next(place)}")(x, train)
        x = ConvNorm(1280, 1, activation=relu6, name=f"features.{next(place)}")(x, train)
        x = nn.Dropout(0.2, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(self.num_classes, name="classifier.1")(x)


class InvertedResidual(nn.Module):
    """Expanded, filtered channel by channel, gated, projected without activation, added to the input.

    Attributes:
        features, expanded: channels at the end and in between.
        window, strides: of the depthwise convolution.
        layer: makes each convolution, with its normalisation and activation.
        excite: makes the gate, if there is one.
    """

    features: int
    expanded: int
    window: int
    strides: int
    layer: Callable[..., ConvNorm]
    excite: Callable[..., SqueezeExcite] | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y, names = x, (f"block.{place}" for place in itertools.count())
        if self.expanded != x.shape[-1]:
            y = self.layer(self.expanded, 1, name=next(names))(y, train)
        y = self.layer(self.expanded, self.window, self.strides, groups=self.expanded, name=next(names))(y, train)
        if self.excite is not None:
            y = self.excite(name=next(names))(y)
        y = self.layer(self.features, 1, activation=identity, name=next(names))(y, train)
        return x + y if self.strides == 1 and x.shape == y.shape else y


class Block(NamedTuple):
    """A row of the paper's tables 1 and 2."""

    window: int
    expanded: int
    features: int
    excite: bool
    activation: Callable[[Array], Array]
    strides: int = 1


LARGE = (
    Block(3, 16, 16, False, relu),
    Block(3, 64, 24, False, relu, 2),
    Block(3, 72, 24, False, relu),
    Block(5, 72, 40, True, relu, 2),
    Block(5, 120, 40, True, relu),
    Block(5, 120, 40, True, relu),
    Block(3, 240, 80, False, hard_swish, 2),
    Block(3, 200, 80, False, hard_swish),
    Block(3, 184, 80, False, hard_swish),
    Block(3, 184, 80, False, hard_swish),
    Block(3, 480, 112, True, hard_swish),
    Block(3, 672, 112, True, hard_swish),
    Block(5, 672, 160, True, hard_swish, 2),
    Block(5, 960, 160, True, hard_swish),
    Block(5, 960, 160, True, hard_swish),
)
SMALL = (
    Block(3, 16, 16, True, relu, 2),
    Block(3, 72, 24, False, relu, 2),
    Block(3, 88, 24, False, relu),
    Block(5, 96, 40, True, hard_swish, 2),
    Block(5, 240, 40, True, hard_swish),
    Block(5, 240, 40, True, hard_swish),
    Block(5, 120, 48, True, hard_swish),
    Block(5, 144, 48, True, hard_swish),
    Block(5, 288, 96, True, hard_swish, 2),
    Block(5, 576, 96, True, hard_swish),
    Block(5, 576, 96, True, hard_swish),
)


class MobileNetV3(nn.Module):
    """Images (N, H, W, 3) -> logits (N, num_classes)."""

    blocks: tuple[Block, ...]
    hidden: int
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        layer = partial(ConvNorm, epsilon=1e-3, momentum=0.99)
        x = layer(16, 3, 2, activation=hard_swish, name="features.0")(x, train)
        for place, block in enumerate(self.blocks, 1):
            x = InvertedResidual(
                block.features,
                block.expanded,
                block.window,
                block.strides,
                partial(layer, activation=block.activation),
                partial(SqueezeExcite, divisible(block.expanded / 4), gate=hard_sigmoid) if block.excite else None,
                name=f"features.{place}",
            )(x, train)
        name = f"features.{len(self.blocks) + 1}"
        x = layer(6 * x.shape[-1], 1, activation=hard_swish, name=name)(x, train)
        x = hard_swish(nn.Dense(self.hidden, name="classifier.0")(x.mean((1, 2))))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="classifier.3")(x)


VARIANTS = {
    "mobilenet_v2": MobileNetV2,
    "mobilenet_v3_large": partial(MobileNetV3, LARGE, 1280),
    "mobilenet_v3_small": partial(MobileNetV3, SMALL, 1024),
}
