"""Files that appear whole or not at all, and leave no folders behind when they do not."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxcircuits.errors import InputError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place, then move it there: nobody ever sees half of it.

    Raises:
        InputError: the folder cannot be made or the file not be written.
    """
    check_writable(path)  # in better words than the system's
    known = hashlib.blake2s(os.fsencode(path.name), digest_size=8).hexdigest()  # a longer name may not be allowed
    beside = path.with_name(f".{known}.{os.getpid()}.part")
    try:
        with folder(path.parent):
            try:
                beside.unlink(missing_ok=True)
                with beside.open("xb") as file:  # whatever a link of that name leads to is left alone
                    file.write(content)
                beside.replace(path)
            except BaseException:
                with contextlib.suppress(OSError):
                    beside.unlink(missing_ok=True)
                raise
    except (OSError, ValueError) as error:  # a null character in a path is a ValueError
        raise _unwritable(path, error) from error


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Write several files of one folder beside their places, then move them there: all of them or none.

    Raises:
        InputError: the folder cannot be made or a file not be written.
    """
    parent = next(iter(contents)).parent
    for path in contents:
        check_writable(path)
    try:
        with folder(parent), tempfile.TemporaryDirectory(prefix=".beside-", dir=parent) as beside:
            for path, content in contents.items():
                Path(beside, path.name).write_bytes(content)
            for path in contents:
                Path(beside, path.name).replace(path)
    except (OSError, ValueError) as error:
        raise _unwritable(parent, error) from error


@contextlib.contextmanager
def folder(path: Path) -> Iterator[None]:
    """Make a folder for the body to write into; when the body fails, those made for it go again if they are empty."""
    new = [p for p in (path, *path.parents) if not p.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for made in new:
            with contextlib.suppress(OSError):
                made.rmdir()
        raise


def check_writable(path: Path) -> None:
    """Raise an InputError if it is clear already that no file can be written at this path. Makes nothing."""
    there = path.parent
    try:
        while not there.exists():
            there = there.parent
        if not there.is_dir():
            raise NotADirectoryError(f"{str(there)!r} is a file")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write in {str(there)!r}")
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: Exception) -> InputError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else error
    return InputError(f"{str(path)!r} cannot be written: {why}")
