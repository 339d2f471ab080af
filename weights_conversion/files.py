"""State dicts in files: PyTorch's .pth and .pt, and .safetensors."""

import contextlib
import io
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weights_conversion.errors import ConversionError, reason
from weights_conversion.guards import check_torch_file, file_size
from weights_conversion.rules import StateDict

Reader = Callable[[Path], StateDict]
Writer = Callable[[Mapping[str, np.ndarray]], bytes | memoryview]

NESTS = ("state_dict", "model_state_dict", "model")
"""Where training scripts put the weights in what they save."""

PREFIXES = ("module.", "_orig_mod.")
"""What nn.DataParallel and torch.compile put before every name."""

MOST_TIMES = 16
"""So many times as large as its file a state dict may be in memory: eight-bit numbers that become float32, shared by
several names, but no views that repeat one number for ever."""


def read_file(path: str | Path) -> StateDict:
    """The weights of a .pth, .pt, .bin or .safetensors file; no code in it is run.

    Float32 arrays and integers are kept bit for bit; other floating-point types (bfloat16, float16, float64) become
    float32. Weights may lie under "state_dict", "model_state_dict" or "model", and all names may share the prefixes
    that nn.DataParallel and torch.compile add.

    Raises:
        ConversionError: the file cannot be read, is broken, or holds anything but arrays by name.
    """
    path = Path(path)
    read, _ = _format(path)
    _check_readable(path)
    state = _without_prefixes(read(path))
    if not state:
        raise ConversionError(f"{path} holds no weights")
    return {key: _float32(value) for key, value in state.items()}


def write_state(path: str | Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes weights to a .pth, .pt, .bin or .safetensors file, which appears whole or not at all.

    Raises:
        ConversionError: unknown ending, or the file cannot be written.
    """
    path = Path(path)
    _, encoded = _format(path)
    content = encoded(state)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.unlink(missing_ok=True)
        with beside.open("xb") as file:  # whatever a link of that name leads to is left alone
            file.write(content)
        beside.replace(path)
    except OSError as err:
        raise ConversionError(f"cannot write {path}: {reason(err)}") from None
    finally:
        with contextlib.suppress(OSError):  # it is gone if all went well
            beside.unlink()


def _format(path: Path) -> tuple[Reader, Writer]:
    if path.suffix.lower() not in FORMATS:
        raise ConversionError(f"{path} has none of the endings {', '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]


def load_torch(path: Path) -> Any:
    """What `torch.save` wrote to a file; no code in it is run.

    Raises:
        ConversionError: the file cannot be read, is broken, or holds anything but tensors, numbers and containers.
    """
    torch = _torch(f"reading {path}")
    _check_readable(path)
    try:
        check_torch_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _plain(torch, torch.load(path, map_location="cpu", weights_only=True))
    except Exception as err:  # a hostile or broken file may raise anything
        raise ConversionError(f"{path} is broken, or no PyTorch file of weights only ({reason(err)})") from None


def _plain(torch: Any, value: Any) -> Any:
    """Dictionaries and tensors without attributes of a file's own, which may hide theirs."""
    if isinstance(value, dict):
        return {key: _plain(torch, each) for key, each in dict.items(value)}
    return torch.Tensor.detach(value) if isinstance(value, torch.Tensor) else value


def _check_readable(path: Path) -> None:
    try:
        file_size(path)
    except (OSError, ValueError) as err:
        raise ConversionError(f"cannot read {path}: {reason(err)}") from None


def _read_torch(path: Path) -> StateDict:
    content = load_torch(path)
    torch, size = _torch(f"reading {path}"), file_size(path)
    for name in NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise ConversionError(f"{path} holds a {type(content).__name__}, expected tensors by name")
    others = [str(key) for key, value in content.items() if not (isinstance(key, str) and torch.is_tensor(value))]
    if others:
        raise ConversionError(f"{path} holds entries that are not tensors by name: {', '.join(others)}")
    if sum(tensor.numel() * max(4, tensor.element_size()) for tensor in content.values()) > MOST_TIMES * size:
        raise ConversionError(f"{path} claims to hold far more numbers than a file of {size} bytes can")
    try:
        return {key: _from_tensor(tensor) for key, tensor in content.items()}
    except Exception as err:  # sparse, quantized and the like; or with attributes that hide the tensor's own
        raise ConversionError(f"{path} holds a tensor that NumPy cannot ({reason(err)})") from None


def _from_tensor(tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    # NumPy knows no bfloat16.
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _torch_bytes(state: Mapping[str, np.ndarray]) -> memoryview:
    torch = _torch("writing PyTorch files")
    buffer = io.BytesIO()
    tensors = OrderedDict((key, torch.from_numpy(np.array(value, order="C"))) for key, value in state.items())
    # torchvision's MNASNet loads no state dict that does not tell its module's version
    tensors._metadata = {"": {"version": 2}}  # pyright: ignore[reportAttributeAccessIssue]
    torch.save(tensors, buffer)
    return buffer.getbuffer()


def _torch(purpose: str) -> Any:
    try:
        import torch
    except ImportError as err:
        raise ConversionError(
            f"{purpose} needs PyTorch ({reason(err)}): `pip install 'jaxcircuits[convert]'`, or use .safetensors"
        ) from None
    return torch


def _read_safetensors(path: Path) -> StateDict:
    import ml_dtypes  # noqa: F401  (teaches NumPy bfloat16)
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dictionary)
    except Exception as err:  # a broken file may raise anything
        raise ConversionError(f"{path} is broken, or no safetensors file ({reason(err)})") from None


def _safetensors_bytes(state: Mapping[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    # Of arrays that are not contiguous safetensors writes wrong data, without an error.
    return save({key: np.asarray(value, order="C") for key, value in state.items()})


def _without_prefixes(state: StateDict) -> StateDict:
    for prefix in PREFIXES * 2:  # both may be there, in either order
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _float32(value: np.ndarray) -> np.ndarray:
    floating = value.dtype.kind in "fV"  # ml_dtypes' are of kind V
    with np.errstate(over="ignore"):  # too large for float32 is infinite
        return value.astype(np.float32) if floating and value.dtype != np.float32 else value


FORMATS: dict[str, tuple[Reader, Writer]] = {
    ".pth": (_read_torch, _torch_bytes),
    ".pt": (_read_torch, _torch_bytes),
    ".bin": (_read_torch, _torch_bytes),
    ".safetensors": (_read_safetensors, _safetensors_bytes),
}
"""A file's ending -> how it is read, and how its bytes are made."""
