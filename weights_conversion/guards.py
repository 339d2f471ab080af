"""What is looked at before a library reads a file: what it is, and whether it holds as much as it claims.

Each function raises an OSError or a ValueError, whose message is the end of a sentence.
"""

import errno
import json
import math
import os
import pickletools
import stat
import zipfile
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

MOST_JSON = 2**29  # bytes
DEEPEST = 32  # lists and dictionaries within one another
MOST_TUPLED = 10**6
MAGIC = 0x1950A86A20F9469CFC6C  # with which files of PyTorch before 1.6 begin
SMALL, MOST_PACKED = 2**28, 100  # bytes that anything may unpack to; beyond them, so many times as much as it takes


def file_size(path: str | os.PathLike[str]) -> int:
    """The size of a regular file that can be read: from a pipe or a device one could read for ever."""
    info = os.stat(path)
    if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
        raise OSError(errno.EINVAL, "it is no regular file")
    open(path, "rb").close()
    return info.st_size


def check_folder(root: str | os.PathLike[str], most: int) -> None:
    """Refuse a folder that holds links, pipes or devices, or in all more than so many bytes."""
    total = 0
    for parent, folders, files in os.walk(root):
        for path in (os.path.join(parent, name) for name in (*folders, *files)):
            info = os.lstat(path)
            if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
                raise OSError(errno.EINVAL, f"{os.path.relpath(path, root)!r} is no regular file")
            total += info.st_size
    if total > most:
        raise ValueError(f"it holds {total} bytes, more than {most}")


def read_json(path: str | os.PathLike[str], most: int = MOST_JSON) -> Any:
    """A file of JSON."""
    size = file_size(path)
    if size > most:
        raise ValueError(f"it has {size} bytes, more than {most}")
    return parse_json(Path(path).read_bytes())


def parse_json(text: str | bytes) -> Any:
    """JSON without NaN, infinities, and lists or dictionaries within one another beyond measure."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"it holds {constant}")

    try:
        value = json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [value]
    for _ in range(DEEPEST):
        inside = (inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer))
        level = [inner for inner in inside if isinstance(inner, dict | list)] if isinstance(value, dict | list) else []
    if level:
        raise ValueError("it is nested too deeply")
    return value


def check_torch_file(path: str | os.PathLike[str]) -> None:
    """Refuse a .pth that unpacks to more than it holds, or whose pickle would keep a computer busy."""
    size = file_size(path)
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":  # as torch decides it
            file.seek(0)
            for _ in range(5):  # before version 1.6: magic number, protocol, system, weights, names of their arrays
                check_pickle(file)
            return
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            if archive.comment or len({info.filename.lower() for info in infos}) < len(infos):
                raise ValueError("its archive is not as torch.save writes it")
            if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
                raise ValueError("its archive is compressed, which torch.save never does")
            if sum(info.file_size for info in infos) > size:
                raise ValueError("its archive claims to hold more than the file does")
            for info in infos:
                if info.filename.lower().endswith("data.pkl"):
                    with archive.open(info) as pickled:
                        check_pickle(pickled)


def check_pickle(file: IO[bytes]) -> None:
    """Refuse tuples of tuples of tuples that grow exponentially, to hash which takes for ever, and huge integers, which
    can be chosen to have equal hashes. Nothing is unpickled."""
    stack: list[int | None] = []  # of each object the entries of its tuples when written out; None: a mark
    memo: dict[int, int | None] = {}
    try:
        for op, arg, _ in pickletools.genops(file):
            if isinstance(arg, int) and abs(arg) >= 2**64 and arg != MAGIC:
                raise ValueError("it holds an integer of more than 64 bits")
            if op.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                memo[len(memo) if op.name == "MEMOIZE" else int(arg or 0)] = stack[-1]
                continue
            if op.name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[int(arg or 0)])
                continue
            if op.name == "MARK":
                stack.append(None)
                continue
            taken: list[int] = []
            for what in reversed(op.stack_before):
                if what is pickletools.stackslice:
                    while (top := stack.pop()) is not None:
                        taken.append(top)
                elif what is not pickletools.markobject:
                    taken.append(stack.pop() or 0)
            size = 1 + sum(taken) if op.name.startswith("TUPLE") else 1
            if size > MOST_TUPLED:
                raise ValueError("its tuples are nested beyond measure")
            stack += [size] * len(op.stack_after)
    except (IndexError, KeyError):
        raise ValueError("its pickle is broken") from None


def check_array(file: IO[bytes], size: int) -> None:
    """Refuse a .npy that claims more numbers than its bytes can be, or none that are plain; rewinds the file."""
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = read(file)
    except KeyError:
        raise ValueError("it is of a version that numbers do not need") from None
    except (OSError, ValueError):
        raise
    except Exception:  # NumPy parses it as Python
        raise ValueError("its header is broken") from None
    if dtype.hasobject or not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"it holds {dtype} of shape {shape}")
    if math.prod(shape) * dtype.itemsize > size - file.tell():
        raise ValueError(f"it claims {dtype} of shape {shape}, which its {size} bytes are too few for")
    file.seek(0)


def check_npz(path: str | os.PathLike[str], name: str) -> None:
    """Refuse an array in an .npz that unpacks to far more than it takes there, or claims to be larger than it is."""
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n in (name, f"{name}.npy")]
        if len(names) != 1:
            raise ValueError(f"it holds {len(names)} arrays {name!r}")
        info = archive.getinfo(names[0])
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"its {name!r} is not compressed as NumPy does it")
        if info.file_size > max(SMALL, MOST_PACKED * min(info.compress_size, os.stat(path).st_size)):
            raise ValueError(f"its {name!r} of {info.compress_size} bytes would unpack to {info.file_size}")
        with archive.open(info) as file:
            check_array(file, info.file_size)
