"""Arrays in files: safetensors, .npy and .npz."""

import io
import json
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import jaxcircuits as jc
from tests.hostile.mutations import STRINGS, json_text, scratched, spoiled, twisted
from tests.hostile.pickles import Evil, claiming
from tests.hostile.pictures import Small
from tests.hostile.survival import Attempt


def safetensors_of(rng: Random, tensors: dict[str, np.ndarray], metadata: Any) -> bytes:
    """A file of safetensors, as its header may say it, or may not."""
    kinds = {"bool": "BOOL", "float32": "F32", "uint8": "U8", "int64": "I64", "float64": "F64", "int32": "I32"}
    header, data = {"__metadata__": metadata}, b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {
            "dtype": kinds.get(array.dtype.name, "F16"),
            "shape": list(array.shape),
            "data_offsets": offsets,
        }
        data += raw
    if tensors and rng.random() < 0.5:
        entry: Any = header[rng.choice(sorted(tensors))]
        how = rng.randrange(8)
        if how == 0:
            entry["dtype"] = rng.choice(("F64", "BF16", "F8_E4M3", "F4", "U64", "X", "", "bool", 7))
        elif how == 1:
            entry["shape"] = rng.choice(
                ([2**60], [2**60, 0], [2**32, 2**32], [-1, -6], [], [1] * 70, entry["shape"][::-1])
            )
        elif how == 2:
            entry["data_offsets"] = rng.choice(([0, 2**60], [2**63, 2**64], [5, 1], [0, 1], [-1, 5], [0], [2**70, 1]))
        elif how == 3:
            header[rng.choice(STRINGS)] = entry  # two names for the same bytes
        elif how == 4:
            del header[next(name for name, found in header.items() if found is entry)]
        else:
            header = twisted(rng, header)
    head = json_text(rng, header) if rng.random() < 0.3 else json.dumps(header).encode()
    length = (
        rng.choice((0, 1, 2**31, 2**60, 2**63, 2**64 - 1, len(head) - 1, len(head) + 1))
        if rng.random() < 0.1
        else len(head)
    )
    content = struct.pack("<Q", length) + head + data
    how = rng.randrange(12)
    if how == 0:
        content = rng.choice((b"PK\x03\x04", b"GIF89a", b"\x80\x02}q\0.", b"\x93NUMPY")) + content
    elif how == 1:
        content += b"\0" * rng.choice((1, 4096))
    return scratched(rng, content) if how == 2 else content


def npy_of(rng: Random, array: np.ndarray) -> bytes:
    """A .npy, whose header claims what it may."""
    descr, order, shape = repr(array.dtype.str), "False", repr(array.shape)
    how = rng.randrange(10)
    if how == 0:
        shape = rng.choice(
            (
                "(2**60,)",
                f"({2**60}, 0)",
                f"({2**33},)",
                "(-1,)",
                "(True,)",
                "'x'",
                f"({10**400},)",
                "()",
                "(1,)*99",
                "(3.5,)",
            )
        )
    elif how == 1:
        descr = rng.choice(
            (
                "'|O'",
                "'<f8'",
                "'<U1'",
                "'|V0'",
                "'<M8[s]'",
                "[('a', '<f4')]",
                "[('a', '|O')]",
                "('<f4', (9999, 9999))",
                "1",
                "''",
                "'|S2147483647'",
                "'<c16'",
            )
        )
    elif how == 2:
        order = rng.choice(
            ("True", "1", "None", "'x'", "(" * 3000, "-" * 5000 + "1", "__import__('os').system('touch ran')")
        )
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    if how == 3:
        text = rng.choice(
            ("[" * 9000, "{" + "1," * 3000 + "}", "'" * 50, "\0" * 40, f"{{'shape': {shape}}}", "{'a" + "\n" * 40)
        )
    head = text.encode("latin1", "replace").ljust(118) + b"\n"
    version = rng.choice((b"\1\0", b"\2\0", b"\3\0", b"\x09\0", b"\0\0")) if how == 4 else b"\1\0"
    size = struct.pack(
        "<H" if version == b"\1\0" else "<I", min(len(head), 65535) if how != 5 else rng.choice((0, 3, 65535))
    )
    content = b"\x93NUMPY" + version + size + head + np.ascontiguousarray(array).tobytes()
    if how == 6:
        return pickle.dumps(Evil())
    return scratched(rng, content) if how == 7 else content


def npz_of(rng: Random, array: np.ndarray) -> bytes:
    """An .npz: other names, ways to pack, bombs, and sizes that are not so."""
    how = rng.randrange(9)
    stream, inner = io.BytesIO(), npy_of(rng, array) if rng.random() < 0.4 else valid_npy(array)
    if how == 0:  # zeros
        inner = valid_npy(np.zeros((1, 1, 1, 3), np.uint8)).replace(b"(1, 1, 1, 3)", b"(9000,9,9,3)")
        inner += b"\0" * rng.choice((10, 10_000_000))
    method = (
        rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        if how == 1
        else zipfile.ZIP_DEFLATED
    )
    with zipfile.ZipFile(stream, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(
            rng.choice(("images.npy", "images", "../images.npy", "IMAGES.npy", "x.npy")) if how == 2 else "images.npy",
            inner,
        )
        if how == 3:
            archive.writestr("images.npy", inner)
        if how == 4:
            for k in range(2000):
                archive.writestr(f"{k}\x1b[2J.npy", b"")
    content = stream.getvalue()
    if how == 5:
        content = claiming(content, rng.choice((2**32 - 2, 2**31, 0, 7)))
    return scratched(rng, content) if how == 6 else content


def valid_npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array)
    return stream.getvalue()


def array(rng: Random, place: Path) -> Attempt:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    if rng.random() < 0.2:
        pixels = rng.choice((pixels[:0], pixels[..., :2], pixels[0], pixels.astype(np.float32), pixels[:, :1, :1]))
    kind = rng.choice(("npy", "npz"))
    path = place / "in" / f"a.{kind}"
    path.write_bytes(npy_of(rng, pixels) if kind == "npy" else npz_of(rng, pixels))
    if rng.random() < 0.05:
        spoiled(rng, place / "in", place)

    def attempt():
        for block in jc.read_images(path, Small):
            assert np.isfinite(block).all()

    return attempt
