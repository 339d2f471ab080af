"""ConvNeXt as in torchvision: "A ConvNet for the 2020s" (arXiv 2201.03545).

Stochastic depth is left out, in training as well.
"""

from functools import partial
from typing import Any

import flax.linen as nn
from jax import Array

# of each position's channels; the fast variance, a difference of squares, loses digits
norm = partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)


class Block(nn.Module):
    """A depthwise convolution, then two dense layers at each position, scaled and added to the input."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        y = nn.Conv(width, (7, 7), padding=3, feature_group_count=width, name="block.0")(x)
        y = norm(name="block.2")(y)
        y = nn.gelu(nn.Dense(4 * width, name="block.3")(y), approximate=False)
        y = nn.Dense(width, name="block.5")(y)
        return x + self.param("layer_scale", nn.initializers.constant(1e-6), (1, 1, width)) * y


class ConvNeXt(nn.Module):
    """Images (N, H, W, 3) -> logits (N, num_classes); `train` changes nothing."""

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        x = nn.Conv(self.widths[0], (4, 4), strides=4, padding=0, name="features.0.0")(x)
        x = norm(name="features.0.1")(x)
        for stage, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
            if stage > 0:
                x = norm(name=f"features.{2 * stage}.0")(x)
                x = nn.Conv(width, (2, 2), strides=2, padding=0, name=f"features.{2 * stage}.1")(x)
            for block in range(blocks):
                x = Block(name=f"features.{2 * stage + 1}.{block}")(x)
        x = norm(name="classifier.0")(x.mean((1, 2)))
        return nn.Dense(self.num_classes, name="classifier.2")(x)


VARIANTS = {
    "convnext_tiny": partial(ConvNeXt, (96, 192, 384, 768), (3, 3, 9, 3)),
    "convnext_small": partial(ConvNeXt, (96, 192, 384, 768), (3, 3, 27, 3)),
    "convnext_base": partial(ConvNeXt, (128, 256, 512, 1024), (3, 3, 27, 3)),
    "convnext_large": partial(ConvNeXt, (192, 384, 768, 1536), (3, 3, 27, 3)),
}
SEEN: dict[str, dict[str, Any]] = {
    f"convnext_{size}": {"resize_size": side}
    for size, side in (("tiny", 236), ("small", 230), ("base", 232), ("large", 232))
}
