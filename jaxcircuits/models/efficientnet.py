"""EfficientNet as in torchvision: "EfficientNet" (arXiv 1905.11946) and "EfficientNetV2" (arXiv 2104.00298).

Stochastic depth is left out, in training as well.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
from jax import Array
from jax.nn import silu

from jaxcircuits.models.common import ConvNorm, SqueezeExcite, divisible, identity
from jaxcircuits.models.mobilenet import InvertedResidual


class Stage(NamedTuple):
    """Blocks of one width; `fused` ones expand and filter in one convolution, without a gate."""

    expansion: int
    window: int
    strides: int
    width: int
    blocks: int
    fused: bool = False


B0 = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)
V2_S = (
    Stage(1, 3, 1, 24, 2, fused=True),
    Stage(4, 3, 2, 48, 4, fused=True),
    Stage(4, 3, 2, 64, 4, fused=True),
    Stage(4, 3, 2, 128, 6),
    Stage(6, 3, 1, 160, 9),
    Stage(6, 3, 2, 256, 15),
)
V2_M = (
    Stage(1, 3, 1, 24, 3, fused=True),
    Stage(4, 3, 2, 48, 5, fused=True),
    Stage(4, 3, 2, 80, 5, fused=True),
    Stage(4, 3, 2, 160, 7),
    Stage(6, 3, 1, 176, 14),
    Stage(6, 3, 2, 304, 18),
    Stage(6, 3, 1, 512, 5),
)
V2_L = (
    Stage(1, 3, 1, 32, 4, fused=True),
    Stage(4, 3, 2, 64, 7, fused=True),
    Stage(4, 3, 2, 96, 7, fused=True),
    Stage(4, 3, 2, 192, 10),
    Stage(6, 3, 1, 224, 19),
    Stage(6, 3, 2, 384, 25),
    Stage(6, 3, 1, 640, 7),
)


class FusedResidual(nn.Module):
    """Expanded and filtered in one convolution, projected without activation, added to the input."""

    features: int
    expanded: int
    window: int
    strides: int
    layer: partial[ConvNorm]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        if self.expanded == x.shape[-1]:
            y = self.layer(self.features, self.window, self.strides, name="block.0")(x, train)
        else:
            y = self.layer(self.expanded, self.window, self.strides, name="block.0")(x, train)
            y = self.layer(self.features, 1, activation=identity, name="block.1")(y, train)
        return x + y if self.strides == 1 and x.shape == y.shape else y


class EfficientNet(nn.Module):
    """Images (N, H, W, 3) -> logits (N, num_classes).

    Attributes:
        stages: their first block takes the stride.
        stem, head: channels before and after the stages.
        dropout: share of what the head gives that is dropped in training.
        epsilon, momentum: of BatchNorm.
    """

    stages: tuple[Stage, ...]
    stem: int
    head: int
    dropout: float
    epsilon: float = 1e-5
    momentum: float = 0.9
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        layer = partial(ConvNorm, activation=silu, epsilon=self.epsilon, momentum=self.momentum)
        x = layer(self.stem, 3, 2, name="features.0")(x, train)
        for place, stage in enumerate(self.stages, 1):
            for block in range(stage.blocks):
                width = x.shape[-1]
                shape = stage.width, width * stage.expansion, stage.window, stage.strides if block == 0 else 1, layer
                name = f"features.{place}.{block}"
                if stage.fused:
                    x = FusedResidual(*shape, name=name)(x, train)
                else:
                    excite = partial(SqueezeExcite, width // 4, activation=silu)
                    x = InvertedResidual(*shape, excite, name=name)(x, train)
        x = layer(self.head, 1, name=f"features.{len(self.stages) + 1}")(x, train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(self.num_classes, name="classifier.1")(x)


def _scaled(width: float, depth: float, dropout: float, **norm: float) -> partial[EfficientNet]:
    """B0 with its widths and numbers of blocks multiplied."""
    stages = tuple(
        stage._replace(width=divisible(stage.width * width), blocks=math.ceil(stage.blocks * depth)) for stage in B0
    )
    return partial(EfficientNet, stages, divisible(32 * width), 4 * stages[-1].width, dropout, **norm)


VARIANTS = {
    "efficientnet_b0": _scaled(1.0, 1.0, 0.2),
    "efficientnet_b1": _scaled(1.0, 1.1, 0.2),
    "efficientnet_b2": _scaled(1.1, 1.2, 0.3),
    "efficientnet_b3": _scaled(1.2, 1.4, 0.3),
    "efficientnet_b4": _scaled(1.4, 1.8, 0.4),
    "efficientnet_b5": _scaled(1.6, 2.2, 0.4, epsilon=1e-3, momentum=0.99),
    "efficientnet_b6": _scaled(1.8, 2.6, 0.5, epsilon=1e-3, momentum=0.99),
    "efficientnet_b7": _scaled(2.0, 3.1, 0.5, epsilon=1e-3, momentum=0.99),
    "efficientnet_v2_s": partial(EfficientNet, V2_S, 24, 1280, 0.2, epsilon=1e-3),
    "efficientnet_v2_m": partial(EfficientNet, V2_M, 24, 1280, 0.3, epsilon=1e-3),
    "efficientnet_v2_l": partial(EfficientNet, V2_L, 32, 1280, 0.4, epsilon=1e-3),
}

_SIDES = {  # what the images are cropped to, and the shorter side of a picture is resized to
    "b1": (240, 255),
    "b2": (288, 288),
    "b3": (300, 320),
    "b4": (380, 384),
    "b5": (456, 456),
    "b6": (528, 528),
    "b7": (600, 600),
    "v2_s": (384, 384),
    "v2_m": (480, 480),
    "v2_l": (480, 480),
}
SEEN: dict[str, dict[str, Any]] = {
    f"efficientnet_{size}": {"input_size": crop, "resize_size": resize} for size, (crop, resize) in _SIDES.items()
}
SEEN["efficientnet_b0"] = {}
for _size in ("b0", "b2", "b3", "b4", "b5", "b6", "b7", "v2_l"):
    SEEN[f"efficientnet_{_size}"]["interpolation"] = "bicubic"
SEEN["efficientnet_v2_l"] |= {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
