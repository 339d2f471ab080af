r"""How a picture is parametrised: by its spectrum, in decorrelated colours, kept within 0 ... 1.

From a complex spectrum z[k,l,c] at frequencies f[k,l] (cycles a pixel) the picture is

    x = sigmoid(y C^T),    y[..,c] = 1/4 irfft2(z[..,c] / max(f, 1 / max(h, w))),    C = V diag(l)^1/2 / max l^1/2

Natural pictures have amplitudes near 1/f, so that one step changes all scales alike; V and l are the eigenvectors and
eigenvalues of the colours of natural pictures, so that it changes lightness the most. `irfft2` is orthonormal.

References:
    Olah, Mordvintsev, Schubert, "Feature Visualization" (Distill, 2017, doi 10.23915/distill.00007), "preconditioning";
    ImageNet's colours: Krizhevsky, Sutskever, Hinton (2012), section 4.1, whose covariance has these V and l.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# of the covariance of ImageNet's pixels (R, G, B from 0 to 1), as used for colour augmentation
_VARIANCES = np.array([0.2175, 0.0188, 0.0045])
_AXES = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
COLOURS = (_AXES * np.sqrt(_VARIANCES / _VARIANCES.max())).astype(np.float32)
CONTRAST = 0.25


def spectrum_shape(height: int, width: int) -> tuple[int, ...]:
    """Of one picture's parameters: real and imaginary part of half a spectrum, for three colours."""
    return 2, height, width // 2 + 1, 3


def amplitudes(height: int, width: int) -> np.ndarray:
    """1 / max(f, 1 / max(h, w)): (h, w // 2 + 1, 1)."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    return (1 / np.maximum(frequency, 1 / max(height, width)))[..., None].astype(np.float32)


def decode(spectrum: Array, width: int) -> Array:
    """Pictures (F, h, w, 3) from 0 to 1 of spectra (F, 2, h, w // 2 + 1, 3)."""
    height = spectrum.shape[2]
    z = jax.lax.complex(spectrum[:, 0], spectrum[:, 1]) * amplitudes(height, width)
    y = CONTRAST * jnp.fft.irfft2(z, s=(height, width), axes=(1, 2), norm="ortho")
    return jax.nn.sigmoid(y @ COLOURS.T)
