"""AlexNet as in torchvision: "One weird trick for parallelizing convolutional neural networks" (arXiv 1404.5997)."""

import flax.linen as nn
from jax import Array

from jaxcircuits.models.common import adaptive_average_pool, flatten
from jaxcircuits.pooling import max_pool


class AlexNet(nn.Module):
    """Images (N, H, W, 3) -> logits (N, num_classes)."""

    num_classes: int = 1000

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        x = nn.relu(nn.Conv(64, (11, 11), strides=4, padding=2, name="features.0")(x))
        x = max_pool(x, 3, 2)
        x = nn.relu(nn.Conv(192, (5, 5), padding=2, name="features.3")(x))
        x = max_pool(x, 3, 2)
        x = nn.relu(nn.Conv(384, (3, 3), padding=1, name="features.6")(x))
        x = nn.relu(nn.Conv(256, (3, 3), padding=1, name="features.8")(x))
        x = nn.relu(nn.Conv(256, (3, 3), padding=1, name="features.10")(x))
        x = max_pool(x, 3, 2)
        x = flatten(adaptive_average_pool(x, 6))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = nn.relu(nn.Dense(4096, name="classifier.1")(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = nn.relu(nn.Dense(4096, name="classifier.4")(x))
        return nn.Dense(self.num_classes, name="classifier.6")(x)


VARIANTS = {"alexnet": AlexNet}
