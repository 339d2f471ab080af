"""ResNet, Wide ResNet and ResNeXt as in torchvision (arXiv 1512.03385, 1605.07146, 1611.05431)."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
from jax import Array

from jaxcircuits.models.common import ConvNorm, adaptive_average_pool, conv_norm, flatten, identity
from jaxcircuits.pooling import max_pool

WIDTHS = (64, 128, 256, 512)  # of the four stages; each but the first halves its maps


class Block(nn.Module):
    """A residual block: x (N, H, W, C) -> (N, H / strides, W / strides, O).

    Attributes:
        width: of its stage; O without a bottleneck, a fourth of O with one.
        strides: of its first 3 x 3 convolution.
        bottleneck: 1 x 1, 3 x 3 and 1 x 1 convolutions, in place of two 3 x 3.
        groups, group_width: of the bottleneck, the latter where the stage is 64 wide.
    """

    width: int
    strides: int
    bottleneck: bool
    groups: int = 1
    group_width: int = 64

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        def layer(place: int, x: Array, features: int, window: int, strides: int = 1, groups: int = 1) -> Array:
            return conv_norm(x, train, (f"conv{place}", f"bn{place}"), features, window, strides, groups)

        if self.bottleneck:
            inner = self.width * self.group_width // 64 * self.groups
            y = nn.relu(layer(1, x, inner, 1))
            y = nn.relu(layer(2, y, inner, 3, self.strides, self.groups))
            y = layer(3, y, 4 * self.width, 1)
        else:
            y = nn.relu(layer(1, x, self.width, 3, self.strides))
            y = layer(2, y, self.width, 3)
        if x.shape != y.shape:
            x = ConvNorm(y.shape[-1], 1, self.strides, activation=identity, name="downsample")(x, train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Images (N, H, W, 3) -> logits (N, num_classes).

    Attributes:
        blocks: how many each stage has.
        bottleneck, groups, group_width: of each `Block`.
    """

    blocks: Sequence[int]
    bottleneck: bool = True
    groups: int = 1
    group_width: int = 64
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        x = nn.relu(conv_norm(x, train, ("conv1", "bn1"), 64, 7, 2))
        x = max_pool(x, 3, 2, 1)
        for stage, (width, count) in enumerate(zip(WIDTHS, self.blocks, strict=True), 1):
            for i in range(count):
                strides = 2 if stage > 1 and i == 0 else 1
                block = Block(width, strides, self.bottleneck, self.groups, self.group_width, name=f"layer{stage}.{i}")
                x = block(x, train)
        return nn.Dense(self.num_classes, name="fc")(flatten(adaptive_average_pool(x, 1)))


VARIANTS = {
    "resnet18": partial(ResNet, (2, 2, 2, 2), bottleneck=False),
    "resnet34": partial(ResNet, (3, 4, 6, 3), bottleneck=False),
    "resnet50": partial(ResNet, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, (3, 4, 23, 3)),
    "resnet152": partial(ResNet, (3, 8, 36, 3)),
    "wide_resnet50_2": partial(ResNet, (3, 4, 6, 3), group_width=128),
    "wide_resnet101_2": partial(ResNet, (3, 4, 23, 3), group_width=128),
    "resnext50_32x4d": partial(ResNet, (3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x8d": partial(ResNet, (3, 4, 23, 3), groups=32, group_width=8),
    "resnext101_64x4d": partial(ResNet, (3, 4, 23, 3), groups=64, group_width=4),
}
