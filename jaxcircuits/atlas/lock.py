"""One builder to a directory: a lock that the operating system takes back when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from jaxcircuits.errors import InputError
from jaxcircuits.packages import needed

NAME = ".lock"


@contextlib.contextmanager
def held(root: Path) -> Iterator[None]:
    """Hold the lock of an atlas, whose directory is there.

    Raises:
        InputError: another process holds it.
    """
    filelock = needed("filelock", "an atlas")
    lock = filelock.FileLock(root / NAME, timeout=0)
    try:
        if (root / NAME).is_symlink():  # to lock is to empty the file
            raise OSError(errno.ELOOP, "it is a link")
        lock.acquire()
    except filelock.Timeout:
        raise InputError(f"another process is at work on the atlas in {str(root)!r}; one at a time") from None
    except OSError as error:
        raise InputError(f"{str(root / NAME)!r} cannot be locked: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()
