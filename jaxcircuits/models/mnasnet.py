"""MNASNet as in torchvision, its second version: "MnasNet" (arXiv 1807.11626)."""

from functools import partial

import flax.linen as nn
from jax import Array

from jaxcircuits.models.common import conv_norm, divisible

STAGES = (  # window, expansion, channels, blocks, strides of the first
    (3, 3, 24, 3, 2),
    (5, 3, 40, 3, 2),
    (5, 6, 80, 3, 2),
    (3, 6, 96, 2, 1),
    (5, 6, 192, 4, 2),
    (3, 6, 320, 1, 1),
)
# TensorFlow's .9997 (PyTorch counts the other way: .0003)
layer = partial(conv_norm, momentum=0.9997)


class InvertedResidual(nn.Module):
    """Expanded, filtered channel by channel, projected without activation, added to the input where shapes allow."""

    features: int
    window: int
    expansion: int
    strides: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        width = x.shape[-1] * self.expansion
        y = nn.relu(layer(x, train, "layers.0", width))
        y = nn.relu(layer(y, train, "layers.3", width, self.window, self.strides, groups=width))
        y = layer(y, train, "layers.6", self.features)
        return x + y if self.strides == 1 and x.shape == y.shape else y


class MNASNet(nn.Module):
    """Images (N, H, W, 3) -> logits (N, num_classes); `alpha` multiplies all widths but the last."""

    alpha: float
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        stem = divisible(32 * self.alpha)  # 32 in torchvision's first version, whatever alpha
        x = nn.relu(layer(x, train, "layers.0", stem, 3, 2))
        x = nn.relu(layer(x, train, "layers.3", stem, 3, groups=stem))
        x = layer(x, train, "layers.6", divisible(16 * self.alpha))
        for stage, (window, expansion, width, blocks, strides) in enumerate(STAGES, 8):
            for block in range(blocks):
                first = strides if block == 0 else 1
                features = divisible(width * self.alpha)
                x = InvertedResidual(features, window, expansion, first, name=f"layers.{stage}.{block}")(x, train)
        x = nn.relu(layer(x, train, "layers.14", 1280))
        x = nn.Dropout(0.2, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(self.num_classes, name="classifier.1")(x)


VARIANTS = {
    "mnasnet0_5": partial(MNASNet, 0.5),
    "mnasnet0_75": partial(MNASNet, 0.75),
    "mnasnet1_0": partial(MNASNet, 1.0),
    "mnasnet1_3": partial(MNASNet, 1.3),
}
