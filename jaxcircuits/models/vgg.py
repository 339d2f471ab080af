"""VGG as in torchvision, with and without BatchNorm: "Very Deep Convolutional Networks" (arXiv 1409.1556)."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
from jax import Array

from jaxcircuits.models.common import adaptive_average_pool, flatten
from jaxcircuits.pooling import max_pool

WIDTHS = (64, 128, 256, 512, 512)  # channels of the five stages; each ends in a max-pool
CONVOLUTIONS = {  # how many convolutions each stage has
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """Images (N, H, W, 3) -> logits (N, num_classes)."""

    convolutions: tuple[int, ...]
    batch_norm: bool = False
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        place = 0  # in torchvision's `features`, where ReLU and pooling count as well
        for width, count in zip(WIDTHS, self.convolutions, strict=True):
            for _ in range(count):
                x = nn.Conv(width, (3, 3), padding=1, name=f"features.{place}")(x)
                if self.batch_norm:
                    place += 1
                    x = nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name=f"features.{place}")(x)
                x = nn.relu(x)
                place += 2
            x = max_pool(x, 2, 2)
            place += 1
        x = flatten(adaptive_average_pool(x, 7))
        x = nn.relu(nn.Dense(4096, name="classifier.0")(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = nn.relu(nn.Dense(4096, name="classifier.3")(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="classifier.6")(x)


def _variants() -> dict[str, Callable[..., VGG]]:
    plain = {f"vgg{depth}": partial(VGG, counts) for depth, counts in CONVOLUTIONS.items()}
    return plain | {f"{name}_bn": partial(vgg, batch_norm=True) for name, vgg in plain.items()}


VARIANTS = _variants()
