"""ShuffleNet V2 as in torchvision: "Practical Guidelines for Efficient CNN Architecture Design" (arXiv 1807.11164)."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxcircuits.models.common import conv_norm
from jaxcircuits.pooling import max_pool

BLOCKS = (4, 8, 4)  # of the three stages


class Unit(nn.Module):
    """Convolves half of the channels and shuffles them with the others; all of them, in two branches, at a stride."""

    features: int
    strides: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        width = self.features // 2
        if self.strides == 1:
            a, b = jnp.split(x, 2, axis=-1)
        else:
            a = b = x
            a = conv_norm(a, train, "branch1.0", x.shape[-1], 3, self.strides, groups=x.shape[-1])
            a = nn.relu(conv_norm(a, train, "branch1.2", width))
        b = nn.relu(conv_norm(b, train, "branch2.0", width))
        b = conv_norm(b, train, "branch2.3", width, 3, self.strides, groups=width)
        b = nn.relu(conv_norm(b, train, "branch2.5", width))
        return jnp.stack([a, b], axis=-1).reshape(*b.shape[:-1], self.features)


class ShuffleNetV2(nn.Module):
    """Images (N, H, W, 3) -> logits (N, num_classes)."""

    widths: tuple[int, int, int]
    last: int = 1024
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        x = nn.relu(conv_norm(x, train, "conv1.0", 24, 3, 2))
        x = max_pool(x, 3, 2, padding=1)
        for stage, (width, blocks) in enumerate(zip(self.widths, BLOCKS, strict=True), 2):
            for block in range(blocks):
                x = Unit(width, 2 if block == 0 else 1, name=f"stage{stage}.{block}")(x, train)
        x = nn.relu(conv_norm(x, train, "conv5.0", self.last))
        return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2)))


VARIANTS = {
    "shufflenet_v2_x0_5": partial(ShuffleNetV2, (48, 96, 192)),
    "shufflenet_v2_x1_0": partial(ShuffleNetV2, (116, 232, 464)),
    "shufflenet_v2_x1_5": partial(ShuffleNetV2, (176, 352, 704)),
    "shufflenet_v2_x2_0": partial(ShuffleNetV2, (244, 488, 976), 2048),
}
