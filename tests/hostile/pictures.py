"""Pictures."""

import io
import os
import pickle
import struct
import zlib
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

import jaxcircuits as jc
from tests.hostile.mutations import scratched, spoiled
from tests.hostile.pickles import Evil
from tests.hostile.survival import Attempt


@cache
def seed_image(kind: str) -> bytes:
    rng = np.random.default_rng(0)
    stream = io.BytesIO()
    picture = Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))
    picture.save(
        stream,
        {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper()),
        **({"progressive": True} if kind == "jpg" else {}),
    )
    return stream.getvalue()


def image(rng: Random, place: Path) -> Attempt:
    kind = rng.choice(("png", "jpg", "gif", "bmp", "webp", "tif", "ppm"))
    content, how = seed_image(kind), rng.randrange(6)
    if kind == "png" and how < 4:
        content = png_of(rng, content)
    elif kind == "gif" and how == 0:
        content = content[:6] + struct.pack("<HH", *rng.choice(((65535, 65535), (0, 0), (65535, 1)))) + content[10:]
    elif kind == "ppm" and how == 0:
        content = content.replace(
            b"24 20", rng.choice((b"99999 99999", b"0 0", b"-1 5", b"9" * 5000 + b" 1", b"1 100000")), 1
        )
    elif kind == "bmp" and how == 0:
        content = (
            content[:18]
            + struct.pack("<ii", *rng.choice(((2**31 - 1, 2**31 - 1), (0, 0), (-5, -5), (30000, 30000))))
            + content[26:]
        )
    elif kind == "jpg" and how == 0:
        content = many_scans(content, rng.choice((2, 700)))
    elif how < 5:
        content = scratched(rng, content)
    else:
        content = rng.choice(
            (b"%!PS\n(x) run", b"<svg/>", b"\x7fELF", pickle.dumps(Evil()), b"", b"PK\x03\x04" + content)
        )
    folder = place / "in" / "pictures"
    folder.mkdir()
    (folder / f"a.{kind}").write_bytes(content)
    (folder / "ok.png").write_bytes(seed_image("png"))
    if rng.random() < 0.1:
        spoiled(rng, folder, place)
    if rng.random() < 0.05:
        os.symlink("..", folder / "loop")
    path = folder if rng.random() < 0.5 else folder / f"a.{kind}"
    return lambda: looked_at(path)


def png_of(rng: Random, content: bytes) -> bytes:
    """Chunks that are swapped, missing, repeated, or claim a size, each with its right checksum."""
    chunks, at = [], 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    how = rng.randrange(6)
    if how == 0:
        size = rng.choice(((2**31 - 1, 2**31 - 1), (0, 0), (60000, 60000), (1, 2**20), (9459, 9459)))
        chunks[0] = (b"IHDR", struct.pack(">II", *size) + chunks[0][1][8:])
    elif how == 1:
        chunks[0] = (
            b"IHDR",
            chunks[0][1][:8]
            + bytes([rng.choice((1, 2, 4, 16, 99)), rng.choice((0, 3, 4, 6, 9)), 0, 0, rng.choice((0, 1, 7))]),
        )
    elif how == 2:
        rng.shuffle(chunks)
    elif how == 3:
        text = rng.choice((b"zTXt", b"iTXt", b"iCCP", b"eXIf"))
        chunks[1:1] = [(text, b"a\0\0" + zlib.compress(b"\0" * 4 * 10**6))] * rng.choice((1, 5))
    elif how == 4:
        chunks = [chunk for chunk in chunks if rng.random() < 0.8]
    else:
        chunks[-1:-1] = [(b"IDAT", zlib.compress(b"\0" * rng.choice((10, 10**7))))] * 3
    made = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return content[:8] + made


def many_scans(content: bytes, times: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * times + b"\xff\xd9"


class Small:
    input_size, resize_size, mean, std = 16, 18, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)


def looked_at(path: Path) -> None:
    images = jc.read_images(path, Small, batch=2)
    for block in images:
        assert np.isfinite(block).all() and block.shape[1:] == (16, 16, 3)
    assert len(images.names) == len(images) and images.digest
