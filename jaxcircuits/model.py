"""A network with its weights: what every verb of the library takes first."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.core import unfreeze
from jax import Array

from jaxcircuits.data import ImageNet
from jaxcircuits.errors import InputError
from jaxcircuits.layers import Layer, Variables
from jaxcircuits.taps import Network, describe
from weights_conversion import ConversionError, StateDict, digest, to_torch

_EXPECTED = ImageNet()


@dataclass(frozen=True, eq=False)
class Model:
    """A linen module, its variables, and what its images look like. Any convolutional linen module will do.

    Calling it with images (N, H, W, C) gives the network's output. For nnx modules there is `from_nnx`.

    Args:
        module: takes images (N, H, W, C). Layers are its `nn.Conv` and `nn.Dense`, named by their module path.
        variables: as `module.init` returns them; halves and the like become float32.
        name: what it is called in file names and manifests.
        apply_options: keyword arguments of `module.apply`: those that put it in evaluation mode, such as
            {"train": False}, or {"method": function} for a function (module, images) that is built from it.
        input_size: height and width of the images, in pixels.
        resize_size: what the shorter side of a picture is resized to before the centre is cropped.
        interpolation: by which it is resized, "bilinear" or "bicubic".
        channels: of the images.
        mean, std: of the images' channels, for values from 0 to 1; images are normalised with them.
        weights: where the weights came from, as it was given to `load`.
        missing: PyTorch names of weights that the source lacks; they hold zeros.
        extras: PyTorch entries without a place in Flax, kept for the way back.
    """

    module: nn.Module
    variables: Variables
    name: str = field(default="", kw_only=True)
    apply_options: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    input_size: int = field(default=_EXPECTED.input_size, kw_only=True)
    resize_size: int = field(default=_EXPECTED.resize_size, kw_only=True)
    interpolation: str = field(default=_EXPECTED.interpolation, kw_only=True)
    channels: int = field(default=3, kw_only=True)
    mean: tuple[float, ...] = field(default=_EXPECTED.mean, kw_only=True)
    std: tuple[float, ...] = field(default=_EXPECTED.std, kw_only=True)
    weights: str = field(default="given", kw_only=True)
    missing: tuple[str, ...] = field(default=(), kw_only=True)
    extras: StateDict = field(default_factory=dict, kw_only=True)
    _networks: dict[tuple[int, int, int], Network] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "name", self.name or type(self.module).__name__.lower())
        object.__setattr__(self, "variables", jax.tree.map(_float32, unfreeze(dict(self.variables))))

    def __call__(self, images: Array | np.ndarray) -> Array:
        """The network's output for normalised images (N, H, W, C).

        Raises:
            InputError: the weights of some layer are missing.
        """
        if lacking := [key for key in self.missing if key.rpartition(".")[0] in self.layers]:  # the others do not run
            raise InputError(f"the {self.weights} weights of {self.name} lack {listed(lacking)}")
        with jax.default_matmul_precision("highest"):
            return self._apply(self.variables, jnp.asarray(images))

    @functools.cached_property
    def _apply(self):
        return jax.jit(lambda variables, images: self.module.apply(variables, images, **self.apply_options))

    def network(self, image_shape: tuple[int, int, int] | None = None) -> Network:
        """The layers and their geometry for images of shape (H, W, C), by default of the nominal size.

        Raises:
            InputError: JAX computes in float64, which nothing here is made for.
        """
        if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
            raise InputError(
                "jax_enable_x64 is set, and jaxcircuits computes in float32; leave it off, or put what it computes "
                "into `with jax.enable_x64(False):`"
            )
        shape = image_shape or (self.input_size, self.input_size, self.channels)
        if shape not in self._networks:
            self._networks[shape] = describe(self.module, self.variables, shape, self.apply_options)
        return self._networks[shape]

    @property
    def layers(self) -> Mapping[str, Layer]:
        """The convolutions and dense layers by name, in call order, for images of the nominal size."""
        return self.network().layers

    @property
    def transform_input(self) -> bool | None:
        """Whether the module normalises its images again, as GoogLeNet may; None where it has no such option."""
        return getattr(self.module, "transform_input", None)

    @functools.cached_property
    def sha256(self) -> str:
        """A digest of the weights in PyTorch's form: the same however they were delivered."""
        try:
            return digest(self.state_dict())
        except ConversionError:  # a module of the user's own, with variables that PyTorch has no name for
            leaves = traverse_util.flatten_dict(self.variables, sep="/")
            return digest({name: np.asarray(leaf) for name, leaf in leaves.items()})

    def state_dict(self) -> StateDict:
        """The weights as a PyTorch state dict of NumPy arrays, without those that are missing."""
        return to_torch(jax.tree.map(np.asarray, self.variables), extras=self.extras, missing=self.missing)

    def check_weights(self, layers: Iterable[str]) -> None:
        """Raise an InputError if the weights of one of these layers are missing."""
        for name in layers:
            if f"{name}.weight" in self.missing:
                there = [n for n in self.layers if f"{n}.weight" not in self.missing]
                raise InputError(
                    f"the {self.weights} weights of {self.name} hold nothing for {name!r}, only for {listed(there)}"
                )


def _float32(leaf: Any) -> Array:
    array = jnp.array(leaf) if isinstance(leaf, np.ndarray) else jnp.asarray(leaf)  # the caller's may change
    return array.astype(jnp.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array


def listed(names: Iterable[str], shown: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
