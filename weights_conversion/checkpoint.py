"""Flax weights in a directory: an orbax checkpoint, and a manifest.json that says what it holds."""

import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weights_conversion.errors import ConversionError, reason
from weights_conversion.guards import check_folder, read_json
from weights_conversion.rules import StateDict, Variables, digest, to_flax, to_torch

FORMAT = "jaxcircuits weights 1"
MANIFEST = "manifest.json"
WEIGHTS = "weights"
MOST_WEIGHTS = 2**30  # of a checkpoint, which may claim any number; torchvision's largest network has 0.65 * 10^9


def is_checkpoint(directory: str | Path) -> bool:
    """Whether `save_checkpoint` seems to have written the directory."""
    return os.path.isfile(Path(directory) / MANIFEST)


def save_checkpoint(
    directory: str | Path,
    variables: Mapping[str, Any],
    extras: Mapping[str, np.ndarray],
    manifest: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Writes weights and a manifest; the directory appears whole or not at all.

    Args:
        directory: must not exist, unless it is a checkpoint and `overwrite` is set.
        variables: see `Converted`.
        extras: see `Converted`.
        manifest: anything that JSON can hold. "missing", if there, lists the PyTorch names whose leaves are only
            filled up with zeros. "format" and "sha256", the `digest` of the weights, are added.
        overwrite: replace an older checkpoint.

    Raises:
        ConversionError: the directory exists already or cannot be written.
    """
    import jax
    import orbax.checkpoint as ocp

    directory = Path(directory).absolute()  # orbax insists
    if directory.exists() and not overwrite:
        raise ConversionError(f"{directory} exists already")
    if directory.exists() and not is_checkpoint(directory):
        raise ConversionError(f"{directory} is no checkpoint, so it is not overwritten")
    missing = list(manifest.get("missing", ()))
    sha256 = digest(to_torch(variables, missing=missing))
    manifest = {**manifest, "format": FORMAT, "missing": missing, "sha256": sha256}
    tree = jax.tree.map(np.asarray, {"variables": variables, "extras": dict(extras)})
    beside = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    old = directory.with_name(f".{directory.name}.{os.getpid()}.old")
    try:
        beside.mkdir()
        _check_room(beside, [leaf.nbytes for leaf in jax.tree.leaves(tree)])
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(beside / WEIGHTS, tree)
        (beside / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        if directory.exists():
            directory.rename(old)
        beside.rename(directory)
    except Exception as err:  # orbax reports a full disk in its own ways
        if old.exists() and not directory.exists():
            old.rename(directory)
        raise ConversionError(f"cannot write {directory}: {reason(err)}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    if old.is_symlink():  # what it leads to is left alone
        old.unlink()
    shutil.rmtree(old, ignore_errors=True)


def _check_room(directory: Path, sizes: list[int]) -> None:
    """Raise an OSError where arrays of these sizes do not fit: orbax's threads outlive their error and leave files."""
    if shutil.disk_usage(directory).free < sum(sizes):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if hasattr(os, "posix_fallocate"):  # quotas and limits of a file's size
        with tempfile.TemporaryFile(dir=directory) as file:
            os.posix_fallocate(file.fileno(), 0, max(sizes, default=0) or 1)


def load_checkpoint(
    directory: str | Path, template: Mapping[str, Any] | None = None
) -> tuple[Variables, StateDict, dict[str, Any]]:
    """Reads what `save_checkpoint` wrote.

    Args:
        directory: the checkpoint.
        template: variables or their shapes that the weights have to fit.

    Returns:
        Variables and extras as NumPy arrays, and the manifest.

    Raises:
        ConversionError: no checkpoint, a broken one, one of another format, or one that does not fit the template.
    """
    directory = Path(directory).absolute()
    manifest = _read_manifest(directory)
    try:
        tree = _restore(directory / WEIGHTS)
        variables, extras = tree["variables"], tree["extras"]
        state = to_torch(variables, missing=manifest["missing"])
    except Exception as err:  # a broken checkpoint may raise anything
        raise ConversionError(f"the checkpoint {directory} is broken: {reason(err)}") from None
    if digest(state) != manifest.get("sha256"):
        raise ConversionError(f"the checkpoint {directory} is broken: its weights are not those its manifest describes")
    if template is not None:
        to_flax(state, template, optional=manifest["missing"].__contains__)
    return variables, extras, manifest


def _read_manifest(directory: Path) -> dict[str, Any]:
    try:
        manifest = read_json(directory / MANIFEST)
    except OSError as err:
        raise ConversionError(f"{directory} is no checkpoint: cannot read its {MANIFEST}: {reason(err)}") from None
    except ValueError:
        raise ConversionError(f"{directory} is no checkpoint: its {MANIFEST} is not JSON") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise ConversionError(f"{directory} is no checkpoint: its {MANIFEST} has format {found!r}, expected {FORMAT!r}")
    missing = manifest.get("missing")
    if not isinstance(missing, list) or not all(isinstance(name, str) for name in missing):
        raise ConversionError(f"the checkpoint {directory} is broken: its {MANIFEST} lists no names that are missing")
    return manifest


def _restore(path: Path) -> Any:
    import jax
    import orbax.checkpoint as ocp

    check_folder(path, 8 * MOST_WEIGHTS)
    with ocp.PyTreeCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(path).item_metadata
        if metadata is None:
            raise ValueError("orbax finds no weights in it")
        _check_claims(jax.tree.leaves(metadata.tree))
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree)
        return checkpointer.restore(path, restore_args=as_numpy)


def _check_claims(leaves: list[Any]) -> None:
    """Raise a ValueError if arrays are said to be larger than any network's: what is in no file would be zeros."""
    total = 0
    for leaf in leaves:
        shape, chunk = tuple(leaf.shape), leaf.storage.chunk_shape if leaf.storage else None
        total += math.prod(shape)
        if len(shape) > 8 or any(part > max(whole, 1) for part, whole in zip(chunk or (), shape, strict=False)):
            raise ValueError(f"an array of shape {shape} is stored in pieces of {chunk}")
    if total > MOST_WEIGHTS:
        raise ValueError(f"it claims to hold {total} numbers, more than {MOST_WEIGHTS}")
