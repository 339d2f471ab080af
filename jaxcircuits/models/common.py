"""What the models share: pooling and flattening the way PyTorch does them."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax


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
