"""Compact networks as files that need neither this package nor torchvision to run: PyTorch's .pt2 and ONNX."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jaxcircuits.circuit import Circuit
from jaxcircuits.errors import InputError
from jaxcircuits.files import check_writable, write_all
from jaxcircuits.model import Model
from jaxcircuits.packages import needed
from jaxcircuits.pytorch.compacting import compact

if TYPE_CHECKING:
    from torch import nn

PROGRAM, ONNX = ".compact.pt2", ".compact.onnx"

USAGE = """\
import torch

network = torch.export.load({program!r}).module()
feature = network(images)  # (N, 3, H, W) normalised -> (N, 1, H, W)
"""


def export_compact(
    model: Model,
    circuit: Circuit,
    stem: str | Path,
    *,
    program: bool = True,
    onnx: bool = False,
    network: nn.Module | None = None,
    force: bool = False,
) -> list[Path]:
    """Write a circuit's compact network to `STEM.compact.pt2` and `STEM.compact.onnx`, both or none.

    Both take any number of images of the model's nominal size.

    Args:
        model: the full network.
        circuit: of that network.
        stem: path of the files without their endings.
        program: write the first, for `torch.export.load`.
        onnx: write the second; needs the extra `onnx`.
        network: as for `compact`.
        force: overwrite files that exist.

    Returns:
        Their paths.

    Raises:
        InputError: as `compact`; a package is missing, or a file exists or cannot be written.
    """
    paths = free_compact_paths(stem, program=program, onnx=onnx, force=force)
    small = compact(model, circuit, network=network)
    size = model.channels, model.input_size, model.input_size
    contents = {path: _program(small, size) if path.name.endswith(PROGRAM) else to_onnx(small, size) for path in paths}
    if contents:
        write_all(contents)
    return paths


def free_compact_paths(stem: str | Path, *, program: bool, onnx: bool, force: bool) -> list[Path]:
    """The files of an export, or an InputError if they cannot be written, or exist and `force` is not set."""
    endings = [ending for ending, wanted in ((PROGRAM, program), (ONNX, onnx)) if wanted]
    paths = [Path(f"{stem}{ending}") for ending in endings]
    for path in paths:
        check_writable(path)
        if not force and os.path.lexists(path):
            raise InputError(f"{str(path)!r} exists; --force (force=True) overwrites it")
    if onnx:
        _need_onnx()
    return paths


def _need_onnx() -> None:
    for module in ("torch", "onnx", "onnxscript"):
        needed(module, "an ONNX file")


def to_onnx(network: nn.Module, image_shape: tuple[int, int, int]) -> bytes:
    """A PyTorch network that takes images (N, C, H, W) as an ONNX model: input "images", output "feature", any N.

    Args:
        network: in evaluation mode, such as `compact` returns.
        image_shape: (C, H, W).

    Raises:
        InputError: a package is missing.
    """
    _need_onnx()
    import torch

    with _quietly():
        made = torch.onnx.export(
            network,
            (torch.zeros(2, *image_shape),),
            input_names=["images"],
            output_names=["feature"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            dynamo=True,
            verbose=False,
        )
    assert made is not None
    return made.model_proto.SerializeToString()


def _program(network: nn.Module, image_shape: tuple[int, int, int]) -> bytes:
    import torch

    buffer = io.BytesIO()
    with _quietly():
        images = torch.zeros(2, *image_shape)
        torch.export.save(torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("N")},)), buffer)
    return buffer.getvalue()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporters say about themselves."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
