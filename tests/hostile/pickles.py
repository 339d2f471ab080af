"""Pickles that would run code or keep a computer busy, and the archives that PyTorch puts them into."""

import io
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import torch

from tests.hostile.mutations import scratched

RAN = "ran"  # what code in a pickle would leave in the working directory


class Evil:
    """Unpickled, it leaves a file behind."""

    def __reduce__(self):
        return os.system, (f"touch {RAN}",)


def torch_bytes(content: Any, *, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def repacked(content: bytes, change: Callable[[str, bytes], Any], method: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with other members: `change` gives bytes, None, or pairs of names and bytes."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(stream, "w", method) as new,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        for info in old.infolist():
            made = change(info.filename, old.read(info))
            for name, data in [(info.filename, made)] if isinstance(made, bytes) else made or ():
                new.writestr(name, data)
    return stream.getvalue()


def integer(value: int) -> bytes:
    """A pickled whole number."""
    raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def hostile_pickle(rng: Random, pickled: bytes) -> bytes:
    """A state dict's pickle, or another one."""
    how = rng.randrange(8)
    if how == 0:
        return pickle.dumps({"a.weight": Evil()}, protocol=2)
    if how == 1:  # a tuple of two tuples of two tuples ... as the name of a weight
        levels = b"".join(b"h" + bytes([k]) + b"\x86q" + bytes([k + 1]) for k in range(1, 80))
        return b"\x80\x02}q\0)q\1" + levels + b"K\1s."
    if how == 2:
        names = (
            b"builtins\neval",
            b"os\nsystem",
            b"torch\nload",
            b"builtins\nbytearray",
            b"torch\nFloatTensor",
            b"posix\nsystem",
        )
        argument = rng.choice((b"X\x09\0\0\0touch ran", integer(2**40), integer(-1), integer(2**62)))
        return b"\x80\x02}q\0X\1\0\0\0ac" + rng.choice(names) + b"\n" + argument + b"\x85Rs."
    if how == 3:  # repeats one number for ever
        big = rng.choice((2**20, 2**33, 2**60))
        return pickled.replace(b"K\2K\3\x86", integer(big) + b"K\3\x86", 1).replace(b"K\3K\1\x86", b"K\0K\0\x86", 1)
    if how == 4:
        other = rng.choice((b"K\xff", integer(2**62), integer(-5), b"J\xff\xff\xff\x7f"))
        return pickled.replace(rng.choice((b"K\2", b"K\3", b"K\6", b"K\0", b"K\1")), other, 1)
    if how == 5:
        old, new = rng.choice(
            (
                (b"FloatStorage", b"HalfStorage"),
                (b"cpu", b"cud"),
                (b"torch._utils", b"torch._utile"),
                (b"_rebuild_tensor_v2", b"_rebuild_sparse_tensor"),
                (b"a.weight", b"\x1b[2Jabcd"),
                (b"OrderedDict", b"Counter"),
            )
        )
        return pickled.replace(old, new)
    if how == 6:
        return b"\x80\x02}q\0(" + b"".join(integer((2**61 - 1) * (k + 2)) + b"N" for k in range(300)) + b"u."
    return scratched(rng, pickled)


def claiming(content: bytes, size: int) -> bytes:
    """An archive whose directory says that its first member unpacks to so many bytes."""
    at = content.rindex(b"PK\x01\x02") + 24
    return content[:at] + struct.pack("<I", size) + content[at + 4 :]
