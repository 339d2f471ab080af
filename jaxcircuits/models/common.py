"""What the models share: pieces that several families are made of, pooling and flattening the way PyTorch does them."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def identity(x: Array) -> Array:
    """An activation that is none."""
    return x


class ConvNorm(nn.Module):
    """A convolution without bias, BatchNorm and an activation; padded so that strides alone make it smaller.

    Attributes:
        features: output channels.
        window: side of the kernel, or its height and width.
        activation: after BatchNorm.
        epsilon, momentum: of BatchNorm, whose running statistics decay with `momentum` (1 less PyTorch's).
        names: of the convolution and of BatchNorm.
    """

    features: int
    window: int | tuple[int, int] = 3
    strides: int = 1
    groups: int = 1
    activation: Callable[[Array], Array] = nn.relu
    epsilon: float = 1e-5
    momentum: float = 0.9
    names: tuple[str, str] = ("0", "1")
    padding: int | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        shape = self.features, self.window, self.strides, self.groups, self.padding
        return self.activation(conv_norm(x, train, self.names, *shape, epsilon=self.epsilon, momentum=self.momentum))


# as GoogLeNet and Inception v3 have them
BasicConv = partial(ConvNorm, epsilon=1e-3, names=("conv", "bn"))


def conv_norm(
    x: Array,
    train: bool,
    names: str | tuple[str, str],
    features: int,
    window: int | tuple[int, int] = 1,
    strides: int = 1,
    groups: int = 1,
    padding: int | None = None,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> Array:
    """The same without activation, in the scope of the module that calls.

    One name, "layers.3", stands for a place in a longer `Sequential` of PyTorch's: BatchNorm is "layers.4" then.
    """
    if isinstance(names, str):
        sequence, _, place = names.rpartition(".")
        names = names, f"{sequence}.{int(place) + 1}"
    height, width = (window, window) if isinstance(window, int) else window
    sides = [(p, p) for p in ((w - 1) // 2 if padding is None else padding for w in (height, width))]
    conv = nn.Conv(features, (height, width), strides, sides, feature_group_count=groups, use_bias=False, name=names[0])
    return nn.BatchNorm(not train, momentum=momentum, epsilon=epsilon, name=names[1])(conv(x))


class SqueezeExcite(nn.Module):
    """Channels scaled by what a small network, fc1 and fc2, makes of their means (arXiv 1709.01507)."""

    squeezed: int
    activation: Callable[[Array], Array] = nn.relu
    gate: Callable[[Array], Array] = nn.sigmoid

    @nn.compact
    def __call__(self, x: Array) -> Array:
        means = x.mean((1, 2), keepdims=True)
        squeezed = self.activation(nn.Conv(self.squeezed, (1, 1), name="fc1")(means))
        return x * self.gate(nn.Conv(x.shape[-1], (1, 1), name="fc2")(squeezed))


def divisible(channels: float) -> int:
    """The nearest multiple of 8, or the next one if that takes more than a tenth away."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


def adaptive_average_pool(x: Array, size: int) -> Array:
    """Averages to size x size positions, like PyTorch's `AdaptiveAvgPool2d` for any input size.

    Args:
        x: (N, H, W, C).
        size: positions along each side of the result.

    Returns:
        (N, size, size, C), where position i averages the inputs from floor(i H / size) up to ceil((i+1) H / size).
    """
    if x.shape[1:3] == (size, size):
        return x
    rows, columns = (jnp.asarray(_averages(length, size), x.dtype) for length in x.shape[1:3])
    return jnp.einsum("ph,nhwc,qw->npqc", rows, x, columns, precision=lax.Precision.HIGHEST)


def _averages(length: int, size: int) -> np.ndarray:
    """The (size, length) matrix whose row i averages the inputs of position i."""
    i = np.arange(size)[:, None]
    first, last = i * length // size, -(-(i + 1) * length // size)
    inside = (np.arange(length) >= first) & (np.arange(length) < last)
    return inside / (last - first)


def flatten(x: Array) -> Array:
    """(N, H, W, C) -> (N, C*H*W)."""
    # In PyTorch's order C, H, W: dense kernels and their masks carry over as they are.
    return x.transpose(0, 3, 1, 2).reshape(len(x), -1)


def renormalised(x: Array) -> Array:
    """Images (N, H, W, 3) normalised with ImageNet's mean and std, as if they were with a mean and std of 0.5.

    torchvision's GoogLeNet and Inception v3 begin with it where they have Google's weights (`transform_input`).
    """
    mean, std = jnp.array([0.485, 0.456, 0.406]), jnp.array([0.229, 0.224, 0.225])
    return x * (std / 0.5) + (mean - 0.5) / 0.5


@jax.custom_vjp
def gradient_in_memory(x: Array) -> Array:
    """x, whose gradient is computed once and not anew by everything that it is a part of.

    Where each layer adds to what all before it have made, XLA on a CPU would otherwise write out every later layer's
    share in every earlier one's gradient: a DenseNet then takes three times as long to compile.
    """
    return x


def _gradient_in_memory_forward(x: Array):
    return x, x[(0,) * x.ndim]


def _gradient_in_memory_backward(known: Array, gradient: Array):
    # nothing is fused across a branch; an optimization barrier would be gone before XLA fuses
    return (lax.cond(jnp.isnan(known), lambda g: jnp.full_like(g, jnp.nan), lambda g: g, gradient),)


gradient_in_memory.defvjp(_gradient_in_memory_forward, _gradient_in_memory_backward)
