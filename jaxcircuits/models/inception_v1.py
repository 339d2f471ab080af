"""Inception v1 as the feature visualisations of Lucid and Lucent know it, with their names (arXiv 1409.4842).

It is the paper's network with local response normalisation, trained by Google; torchvision's "googlenet" is another.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxcircuits.models.common import adaptive_average_pool, flatten
from jaxcircuits.pooling import max_pool

MIXED = {  # channels of the branches 1x1, 3x3 (bottleneck and after), 5x5 (the same), pool_reduce
    "3a": (64, (96, 128), (16, 32), 32),
    "3b": (128, (128, 192), (32, 96), 64),
    "4a": (192, (96, 204), (16, 48), 64),
    "4b": (160, (112, 224), (24, 64), 64),
    "4c": (128, (128, 256), (24, 64), 64),
    "4d": (112, (144, 288), (32, 64), 64),
    "4e": (256, (160, 320), (32, 128), 128),
    "5a": (256, (160, 320), (48, 128), 128),
    "5b": (384, (192, 384), (48, 128), 128),
}


def conv(x: Array, channels: int, window: int, name: str, strides: int = 1) -> Array:
    """A convolution before its ReLU; where it halves the maps its padding is uneven, as TensorFlow's."""
    before = (window - strides) // 2
    padding = [(before, window - strides - before)] * 2
    return nn.Conv(channels, (window, window), strides, padding, name=f"{name}_pre_relu_conv")(x)


def local_response_norm(x: Array) -> Array:
    """(N, H, W, C), divided by sqrt(1 + 1e-4 the mean square of 9 neighbouring channels), zeros beyond the ends."""
    squares = jnp.pad(jnp.square(x), ((0, 0), (0, 0), (0, 0), (4, 4)))
    mean = sum(squares[..., i : i + x.shape[-1]] for i in range(9)) / 9
    return x / jnp.sqrt(1 + 1e-4 * mean)


class InceptionV1(nn.Module):
    """Images (N, H, W, 3), 255 times values from 0 to 1 less 117 -> logits (N, num_classes)."""

    num_classes: int = 1008

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        x = nn.relu(conv(x, 64, 7, "conv2d0", 2))
        x = local_response_norm(max_pool(x, 3, 2, ceil_mode=True))
        x = nn.relu(conv(x, 64, 1, "conv2d1"))
        x = nn.relu(conv(x, 192, 3, "conv2d2"))
        x = max_pool(local_response_norm(x), 3, 2, ceil_mode=True)
        for place, (one, three, five, pool) in MIXED.items():
            if place in ("4a", "5a"):
                x = max_pool(x, 3, 2, ceil_mode=True)
            name = f"mixed{place}"
            branches = [conv(x, one, 1, f"{name}_1x1")]
            for window, (bottleneck, width) in (3, three), (5, five):
                side = f"{name}_{window}x{window}"
                y = nn.relu(conv(x, bottleneck, 1, f"{side}_bottleneck"))
                branches.append(conv(y, width, window, side))
            branches.append(conv(max_pool(x, 3, 1, 1), pool, 1, f"{name}_pool_reduce"))
            x = nn.relu(jnp.concatenate(branches, -1))
        x = flatten(adaptive_average_pool(x, 1))
        return nn.Dense(self.num_classes, name="softmax2_pre_activation_matmul")(x)


VARIANTS = {"inception_v1": InceptionV1}
SEEN = {"inception_v1": {"mean": (117 / 255,) * 3, "std": (1 / 255,) * 3}}
