"""DenseNet as in torchvision: "Densely Connected Convolutional Networks" (arXiv 1608.06993)."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxcircuits.models.common import adaptive_average_pool, flatten, gradient_in_memory
from jaxcircuits.pooling import max_pool


def norm_relu(x: Array, train: bool, name: str) -> Array:
    """BatchNorm and ReLU, which stand before the convolutions here."""
    return nn.relu(nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name=name)(x))


class DenseLayer(nn.Module):
    """Appends `growth` channels: (N, H, W, C) -> (N, H, W, C + growth)."""

    growth: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = gradient_in_memory(x)
        y = nn.Conv(4 * self.growth, (1, 1), use_bias=False, name="conv1")(norm_relu(x, train, "norm1"))
        y = nn.Conv(self.growth, (3, 3), padding=1, use_bias=False, name="conv2")(norm_relu(y, train, "norm2"))
        return jnp.concatenate([x, y], -1)


class Transition(nn.Module):
    """Halves channels and maps: (N, H, W, C) -> (N, H / 2, W / 2, C / 2)."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = nn.Conv(x.shape[-1] // 2, (1, 1), use_bias=False, name="conv")(norm_relu(x, train, "norm"))
        return nn.avg_pool(x, (2, 2), (2, 2))


class DenseNet(nn.Module):
    """Images (N, H, W, 3) -> logits (N, num_classes).

    Attributes:
        width: output channels of the first convolution.
        growth: of each `DenseLayer`.
        blocks: how many dense layers stand before each transition, and after the last.
    """

    width: int
    growth: int
    blocks: tuple[int, ...]
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        x = nn.Conv(self.width, (7, 7), 2, padding=3, use_bias=False, name="features.conv0")(x)
        x = max_pool(norm_relu(x, train, "features.norm0"), 3, 2, 1)
        for block, count in enumerate(self.blocks, 1):
            for i in range(1, count + 1):
                x = DenseLayer(self.growth, name=f"features.denseblock{block}.denselayer{i}")(x, train)
            if block < len(self.blocks):
                x = Transition(name=f"features.transition{block}")(x, train)
        x = norm_relu(x, train, "features.norm5")
        return nn.Dense(self.num_classes, name="classifier")(flatten(adaptive_average_pool(x, 1)))


VARIANTS = {
    "densenet121": partial(DenseNet, 64, 32, (6, 12, 24, 16)),
    "densenet161": partial(DenseNet, 96, 48, (6, 12, 36, 24)),
    "densenet169": partial(DenseNet, 64, 32, (6, 12, 32, 32)),
    "densenet201": partial(DenseNet, 64, 32, (6, 12, 48, 32)),
}
# what torchvision's published files have in their names -> what its modules have
RENAMED = {r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)": r"\1"}
