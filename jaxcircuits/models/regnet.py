"""RegNet as in torchvision: "Designing Network Design Spaces" (arXiv 2003.13678)."""

from functools import partial

import flax.linen as nn
from jax import Array

from jaxcircuits.models.common import ConvNorm, SqueezeExcite, identity


class Bottleneck(nn.Module):
    """A residual block of a grouped convolution between two of 1 x 1; `excite` puts a gate before the last."""

    features: int
    strides: int
    group_width: int
    excite: bool

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        groups = max(1, self.features // self.group_width)
        y = ConvNorm(self.features, 1, name="f.a")(x, train)
        y = ConvNorm(self.features, 3, self.strides, groups, name="f.b")(y, train)
        if self.excite:
            y = SqueezeExcite(x.shape[-1] // 4, name="f.se")(y)
        y = ConvNorm(self.features, 1, activation=identity, name="f.c")(y, train)
        if self.strides != 1 or x.shape != y.shape:
            x = ConvNorm(self.features, 1, self.strides, activation=identity, name="proj")(x, train)
        return nn.relu(x + y)


class RegNet(nn.Module):
    """Images (N, H, W, 3) -> logits (N, num_classes).

    Attributes:
        widths, blocks: of the four stages, each of which begins with a stride of 2.
        group_width: channels of a group; a narrower stage is one group.
        excite: squeeze and excitation, which makes X to Y.
    """

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    group_width: int
    excite: bool
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        x = ConvNorm(32, 3, 2, name="stem")(x, train)
        for stage, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True), 1):
            for block in range(blocks):
                strides, name = 2 if block == 0 else 1, f"trunk_output.block{stage}.block{stage}-{block}"
                x = Bottleneck(width, strides, self.group_width, self.excite, name=name)(x, train)
        return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2)))


X, Y = partial(RegNet, excite=False), partial(RegNet, excite=True)
VARIANTS = {
    "regnet_x_400mf": partial(X, (32, 64, 160, 400), (1, 2, 7, 12), 16),
    "regnet_x_800mf": partial(X, (64, 128, 288, 672), (1, 3, 7, 5), 16),
    "regnet_x_1_6gf": partial(X, (72, 168, 408, 912), (2, 4, 10, 2), 24),
    "regnet_x_3_2gf": partial(X, (96, 192, 432, 1008), (2, 6, 15, 2), 48),
    "regnet_x_8gf": partial(X, (80, 240, 720, 1920), (2, 5, 15, 1), 120),
    "regnet_x_16gf": partial(X, (256, 512, 896, 2048), (2, 6, 13, 1), 128),
    "regnet_x_32gf": partial(X, (336, 672, 1344, 2520), (2, 7, 13, 1), 168),
    "regnet_y_400mf": partial(Y, (48, 104, 208, 440), (1, 3, 6, 6), 8),
    "regnet_y_800mf": partial(Y, (64, 144, 320, 784), (1, 3, 8, 2), 16),
    "regnet_y_1_6gf": partial(Y, (48, 120, 336, 888), (2, 6, 17, 2), 24),
    "regnet_y_3_2gf": partial(Y, (72, 216, 576, 1512), (2, 5, 13, 1), 24),
    "regnet_y_8gf": partial(Y, (224, 448, 896, 2016), (2, 4, 10, 1), 56),
    "regnet_y_16gf": partial(Y, (224, 448, 1232, 3024), (2, 4, 11, 1), 112),
    "regnet_y_32gf": partial(Y, (232, 696, 1392, 3712), (2, 5, 12, 1), 232),
    "regnet_y_128gf": partial(Y, (528, 1056, 2904, 7392), (2, 7, 17, 1), 264),
}
