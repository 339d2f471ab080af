"""SqueezeNet 1.0 and 1.1 as in torchvision: "SqueezeNet: AlexNet-level accuracy" (arXiv 1602.07360)."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxcircuits.models.common import adaptive_average_pool, flatten
from jaxcircuits.pooling import max_pool

FIRE = (16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256)  # `Fire`'s channels


class Fire(nn.Module):
    """Maps squeezed to few channels, then expanded by two windows: (N, H, W, C) -> (N, H, W, 2 expanded)."""

    squeezed: int
    expanded: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(nn.Conv(self.squeezed, (1, 1), name="squeeze")(x))
        one = nn.relu(nn.Conv(self.expanded, (1, 1), name="expand1x1")(x))
        three = nn.relu(nn.Conv(self.expanded, (3, 3), padding=1, name="expand3x3")(x))
        return jnp.concatenate([one, three], -1)


class SqueezeNet(nn.Module):
    """Images (N, H, W, 3) -> logits (N, num_classes).

    Attributes:
        width, window: of the first convolution.
        pooled: how many `Fire`s stand before each of the pools but the first.
    """

    width: int
    window: int
    pooled: tuple[int, ...]
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        x = nn.relu(nn.Conv(self.width, (self.window, self.window), 2, padding=0, name="features.0")(x))
        x = max_pool(x, 3, 2, ceil_mode=True)
        place = 3  # in torchvision's `features`, where ReLU and pooling count as well
        for i, channels in enumerate(FIRE):
            if i in self.pooled:
                x = max_pool(x, 3, 2, ceil_mode=True)
                place += 1
            x = Fire(*channels, name=f"features.{place}")(x)
            place += 1
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = nn.relu(nn.Conv(self.num_classes, (1, 1), name="classifier.1")(x))
        return flatten(adaptive_average_pool(x, 1))


VARIANTS = {
    "squeezenet1_0": partial(SqueezeNet, 96, 7, (3, 7)),
    "squeezenet1_1": partial(SqueezeNet, 64, 3, (2, 4)),
}
