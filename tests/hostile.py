"""Hostile and broken input: valid files of every kind that is read, made wrong in their structure, and what may come of
them.

`CASES[kind](rng, place)` writes one such file, or a folder of them, below `place / "in"` and returns what reads it.
`survives` runs that and holds it to what docs/security.md promises. Everything is drawn from `rng`, so that hypothesis
may choose, or a seed.
"""

import io
import json
import os
import pickle
import shutil
import signal
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner
from PIL import Image

import jaxcircuits as jc
from jaxcircuits.atlas import store
from jaxcircuits.atlas.store import Chunk, Group, Plan
from jaxcircuits.circuit import KEY, feature_label
from jaxcircuits.cli import main
from jaxcircuits.diagram.page import summary
from jaxcircuits.features import parse
from jaxcircuits.loading import describe_architecture
from jaxcircuits.pages import render, table
from weights_conversion import ConversionError, load_checkpoint, read_file, save_checkpoint, to_flax, to_torch
from weights_conversion.files import FORMATS

Attempt = Callable[[], Any]
SECONDS = 20  # of computing for one file, however it is made
RAN = "ran"  # what code in a pickle would leave in the working directory

STRINGS = (
    "", ".", "..", "../../planted", "/etc/passwd", "a/../../../planted", "C:\\x", "nul\0l", "x" * 5000, "é" * 300,
    "-rf",
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "</title></script><!--", "{{7*7}}{% raw %}",
    "\x1b[2J\x1b]0;x\a", "line\nbreak\r\n", "\ud800", "\u202eevil", "\u2028", "$\\frac{$", "%s%n{0}", "~", "~nobody\0",
    "random:" + "9" * 5000, "torchvision:NO", "tfds:mnist/data_dir=..", "photos:c", "middle", "argmax", "snip", "mean",
    "[red]x[/red]", "features.3", "__proto__", "javascript:alert(1)", "=1+1", "NaN", "1e999",
)  # fmt: skip
NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    255,
    2**31 - 1,
    2**31,
    2**53,
    2**60,
    2**63,
    2**64,
    -(2**63),
    10**400,
    0.5,
    -0.0,
    1e308,
    5e-324,
)
CONSTANTS = (None, True, False, float("nan"), float("inf"))


def leaf(rng: Random) -> Any:
    return rng.choice(rng.choice((STRINGS, NUMBERS, CONSTANTS, ([], {}, [[]], [1, 2], {"a": 1}, [[1, 2], [3]]))))


# ---- JSON


def containers(tree: Any) -> list[Any]:
    """All lists and dictionaries in it, that are not empty."""
    found = [tree] if isinstance(tree, dict | list) and tree else []
    for inner in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        found += containers(inner)
    return found


def twisted(rng: Random, tree: Any) -> Any:
    """A copy in which some places hold something else, have other names, are missing or are there twice."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.randint(1, 3)):
        if not (places := containers(tree)):
            return leaf(rng)
        inside = rng.choice(places)
        if isinstance(inside, list):
            at = rng.randrange(len(inside))
            how = rng.randrange(4)
            inside[at : at + 1] = [[], [leaf(rng)], [inside[at]] * 2, [[inside[at]]]][how]
            continue
        key = rng.choice(sorted(inside))
        how, value = rng.randrange(5), inside.pop(key)
        if how == 0:
            inside[rng.choice(STRINGS)] = value
        elif how == 1:
            inside[key] = [value]
        elif how < 4:
            inside[key] = leaf(rng)
    return tree


def json_text(rng: Random, tree: Any) -> bytes:
    """JSON that may be none, or hold what Python's reader takes and nobody else."""
    text = json.dumps(tree)
    how = rng.randrange(14)
    if how == 0:
        text = text[: rng.randrange(len(text) + 1)]
    elif how == 1:
        text = text.replace(rng.choice("0123456789"), "9" * 5000, 1)
    elif how == 2:
        deep = rng.choice((40, 900, 100_000))
        text = text[:-1] + ', "deep": ' + "[" * deep + "]" * deep + "}"
    elif how == 3:
        text = text[:-1] + ', "deep": ' + '{"a":' * rng.choice((40, 900, 20_000)) + "1" + "}" * 900
    elif how == 4:
        return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))
    elif how == 5:
        return scratched(rng, text.encode())
    elif how == 6:
        text = text[:-1] + "," + text[1:]  # every key twice
    return text.encode()


# ---- bytes, arrays, archives


def scratched(rng: Random, content: bytes) -> bytes:
    """Some bytes changed, inserted or missing; cut off, swapped or repeated pieces."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        a, b = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
        how = rng.randrange(6)
        if how == 0:
            del data[a:]
        elif how == 1:
            data[a:a] = data[a : min(b, a + 4096)]
        elif how == 2:
            data = data[a:b] + data[:a] + data[b:]
        else:
            data[a : a + rng.randint(0, 4)] = rng.choice(
                (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", bytes([rng.randrange(256)]))
            )
    return bytes(data)


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
        inner = valid_npy(np.zeros((1, 1, 1, 3), np.uint8)).replace(b"(1, 1, 1, 3)", b"(9000, 9, 9, 3)"[:12])
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


def claiming(content: bytes, size: int) -> bytes:
    """An archive whose directory says that its first member unpacks to so many bytes."""
    at = content.rindex(b"PK\x01\x02") + 24
    return content[:at] + struct.pack("<I", size) + content[at + 4 :]


def valid_npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array)
    return stream.getvalue()


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


# ---- seeds


@cache
def seed_state() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"a.weight": rng.random((2, 3), np.float32), "a.bias": rng.random(2, np.float32), "b.num": np.array(3)}


TEMPLATE = {"params": {"a": {"kernel": np.zeros((3, 2), np.float32), "bias": np.zeros(2, np.float32)}}}

MANIFEST: dict[str, Any] = {
    "format": 1,
    "model": "alexnet",
    "weights": {"source": "lpips", "sha256": "0" * 64},
    "images": {"source": "photos", "resize": "crop", "number": 48, "digest": "0" * 64},
    "feature": {"layer": "features.3", "channel": 3, "position": None},
    "criterion": "snip",
    "ablation": "zero",
    "objective": "abs",
    "keep": 0.05,
    "kernels": None,
    "relevant": 18,
    "kept": 9,
    "effective": 7,
    "correlation": 0.5,
    "layers": ["features.0", "features.3"],
    "versions": {"jax": "1"},
}
SHAPES = {"features.0": (64, 3), "features.3": (192, 64)}


@cache
def seed_arrays(kind: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {f"mask/{name}": rng.random(shape) < 0.3 for name, shape in SHAPES.items()}
    if kind == "scored":
        arrays |= {f"score/{name}": rng.random(shape, np.float32) for name, shape in SHAPES.items()}
    if kind == "mean":
        arrays |= {f"offset/{name}": rng.random(shape[0], np.float32) for name, shape in SHAPES.items()}
    if kind == "direction":
        arrays["direction"] = rng.random(192, np.float32)
    return arrays


def seed_manifest(kind: str) -> dict[str, Any]:
    feature = {"layer": "features.3", "name": "dirs-0", "position": "middle"}
    changes = {"mean": {"ablation": "mean"}, "direction": {"feature": feature}}
    return MANIFEST | changes.get(kind, {})


@cache
def seed_atlas() -> tuple[Plan, dict[Any, Chunk]]:
    """An atlas of two layers in three chunks, of numbers that nobody has computed."""
    rng = np.random.default_rng(0)
    asked = {k: MANIFEST[k] for k in ("format", "model", "weights", "images", "criterion", "ablation")}
    asked |= {
        "absolute": "per_image",
        "granularity": "kernel",
        "seed": None,
        "precision": "float32",
        "dtype": "float32",
    }
    asked |= {"steps": None, "amounts": [{"keep": 0.5}, {"keep": 0.1}], "scores": "float16"}
    shapes = {"features.0": (8, 3), "features.3": (6, 8)}
    groups = (
        Group("features.0", jc.Features("features.0", [1, 3, 5]), {"features.0": (8, 3)}, 2, 2),
        Group("features.3@middle", jc.Features("features.3", [0, 4], position="middle"), shapes, 2, 2),
    )
    plan = Plan(asked | {"groups": [store.described(group) for group in groups]}, groups)
    chunks = {}
    for which in plan:
        f, shapes = len(plan.features(which)), plan.groups[which.group].shapes
        masks = {name: store.packed(rng.random((f, 2, i, o)) < 0.3) for name, (o, i) in shapes.items()}
        more = {f"score/{name}": rng.random((f, *shape)).astype(np.float16) for name, shape in shapes.items()}
        counts = [rng.integers(1, 9, size) for size in ((f,), (f, 2), (f, 2))]
        about = {"sparse": False, "versions": {"jax": "1"}}
        chunks[which] = Chunk(masks, *counts, rng.random((f, 2)), more | {"scale": np.ones(f, np.float32)}, about)
    return plan, chunks


@cache
def seed_checkpoint() -> dict[str, bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "c")
        save_checkpoint(
            root, to_flax({k: seed_state()[k] for k in ("a.weight", "a.bias")}, TEMPLATE).variables, {}, {"model": "x"}
        )
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


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


# ---- folders


def spoiled(rng: Random, root: Path, place: Path) -> None:
    """One file of a folder is cut, missing, a link, a pipe, a folder, far too large, or another one's."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path, how = rng.choice(files), rng.randrange(8)
    content, other = path.read_bytes(), rng.choice(files).read_bytes()
    if how == 0:
        path.write_bytes(scratched(rng, content))
        return
    if how == 1:
        os.truncate(path, rng.choice((0, 1, 2**30, 2**40)))  # a hole takes no room
        return
    path.unlink()
    if how == 2:
        os.symlink(rng.choice(("/dev/zero", "/etc/passwd", path.name, "..", str(place / "victim"))), path)
    elif how == 3:
        os.mkfifo(path)
    elif how == 4:
        path.mkdir()
    elif how == 5:
        path.write_bytes(other)
    elif how == 6 and path.parent != root:
        shutil.rmtree(path.parent)
        os.symlink(rng.choice((str(place), "/etc", "..")), path.parent)


# ---- cases


def circuit(rng: Random, place: Path) -> Attempt:
    kind = rng.choice(("plain", "scored", "mean", "direction"))
    arrays, manifest = dict(seed_arrays(kind)), seed_manifest(kind)
    if rng.random() < 0.7:
        manifest = twisted(rng, manifest)
    if rng.random() < 0.3:
        name = rng.choice(sorted(arrays))
        old = arrays.pop(name)
        new: Any = [
            None,
            old.T,
            old[:0],
            old.astype(np.float64),
            old.view(np.uint8),
            np.full_like(old, np.nan, np.float32),
            old[None],
            old.reshape(-1),
        ]
        if (array := rng.choice(new)) is not None:
            arrays[name if rng.random() < 0.8 else rng.choice(STRINGS)] = array
    text = json_text(rng, manifest) if rng.random() < 0.2 else json.dumps(manifest).encode()
    metadata = {KEY if rng.random() < 0.97 else "other": text.decode("latin1")}
    path = place / "in" / "a.safetensors"
    path.write_bytes(safetensors_of(rng, arrays, metadata))

    def attempt():
        found = jc.Circuit.load(path)
        assert os.path.basename(found.stem) == found.stem and len(found.features) == 1
        assert feature_label(found.manifest).isprintable() and table(found.manifest)
        summary(found)
        found.save(place / "out" / f"{found.stem}.safetensors")
        again = jc.Circuit.load(place / "out" / f"{found.stem}.safetensors")
        assert again.manifest == found.manifest

    return attempt


def atlas(rng: Random, place: Path) -> Attempt:
    plan, chunks = seed_atlas()
    root, manifest = place / "in" / "atlas", plan.manifest
    how = rng.randrange(4)
    if how == 0:
        manifest = twisted(rng, manifest)
    elif how == 1:  # further in
        manifest = {**manifest, "groups": twisted(rng, manifest["groups"])}
    told = Plan(manifest, plan.groups)
    root.mkdir()
    (root / store.MANIFEST).write_bytes(
        json_text(rng, manifest) if rng.random() < 0.1 else json.dumps(manifest).encode()
    )
    for which, chunk in chunks.items():
        if how == 2 and rng.random() < 0.5:
            chunk = wrong_chunk(rng, chunk)
        store.write_chunk(told, root, which, chunk)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        for group in range(len(plan.groups)):
            if how != 2:
                (root / plan.groups[group].folder / store.TABLE).write_bytes(seed_table(group))
    if how == 3 or rng.random() < 0.1:
        spoiled(rng, root, place)
    question = rng.choice(
        (
            [], ["statistics"], ["table"], ["circuit", "features.0:3"], ["circuit", "features.3:4@middle"],
            ["shared", "features.0"],
            ["users", "features.0:1"], ["users", "features.3:1,2"], ["iou", "features.0:1", "features.3:0@middle"],
            ["matrix"],
            ["nearest", "features.0:1"], ["clusters"],
        )
    )  # fmt: skip
    level = ["--keep", "0.5"] if question and question[0] not in ("statistics", "table") else []
    out = ["--out", str(place / "out")] if question[:1] == ["circuit"] else []
    if rng.random() < 0.2:
        return lambda: command("atlas", "--verify", str(root))
    return lambda: command("query", str(root), *question, *level, *out)


@cache
def seed_table(group: int) -> bytes:
    import tempfile

    from jaxcircuits.atlas.tables import write_table

    plan, chunks = seed_atlas()
    with tempfile.TemporaryDirectory() as folder:
        for which, chunk in chunks.items():
            store.write_chunk(plan, Path(folder), which, chunk)
        write_table(plan, Path(folder), group)
        return Path(folder, plan.groups[group].folder, store.TABLE).read_bytes()


def wrong_chunk(rng: Random, chunk: Chunk) -> Chunk:
    """With a checksum that is right: what is in it is not."""
    how = rng.randrange(7)
    name = rng.choice(sorted(chunk.masks))
    bits = chunk.masks[name]
    if how == 0:
        return chunk._replace(
            masks=chunk.masks
            | {
                name: rng.choice(
                    (bits[:1], bits[:, :, :1], bits[..., None], bits.astype(np.int64), bits | 255, bits * 0)
                )
            }
        )
    if how == 1:
        return chunk._replace(
            masks={n: b for n, b in chunk.masks.items() if n != name}
            | {rng.choice(STRINGS).replace("\0", "").encode("utf-8", "ignore").decode(): bits}
        )
    if how == 2:
        return chunk._replace(
            **{
                rng.choice(("relevant", "kept", "effective", "correlation")): np.zeros(
                    rng.choice(((0,), (1,), (2, 2), (3, 3), ()))
                )
            }
        )
    if how == 3:
        return chunk._replace(correlation=np.full_like(chunk.correlation, rng.choice((np.nan, np.inf, -np.inf, 1e308))))
    if how == 4:
        return chunk._replace(
            more=rng.choice(
                (
                    {},
                    {k: v[:1] for k, v in chunk.more.items()},
                    {k: v * np.float16(np.nan) for k, v in chunk.more.items()},
                )
            )
        )
    if how == 5:
        return chunk._replace(
            about=rng.choice(
                ({}, {"sparse": []}, {"sparse": 1, "versions": "x"}, {"labels": ["x"], "sparse": None, "versions": {}})
            )
        )
    return chunk._replace(kept=chunk.kept * 0 - 5, masks={n: b * 0 for n, b in chunk.masks.items()})


def state_dict(rng: Random, place: Path) -> Attempt:
    zipped = rng.random() < 0.8
    state: Any = OrderedDict((name, torch.from_numpy(np.array(value))) for name, value in seed_state().items())
    if rng.random() < 0.3:
        odd = (
            torch.ones(2, dtype=torch.complex64),
            torch.ones(2, 2).to_sparse(),
            torch.ones(2).half(),
            Evil,
            7,
            "x",
            None,
            {"x": 1},
            torch.empty(2, device="meta"),
            torch.zeros(1).expand(2**20),
        )
        state[rng.choice(("a.weight", "c", "module.a.weight", "\x1b[2J", "x" * 4000))] = rng.choice(odd)
        state = {rng.choice(("state_dict", "model", "a")): state} if rng.random() < 0.3 else state
    how = rng.randrange(10)
    try:
        content = torch_bytes(state, zipped=zipped)
    except Exception:  # a class cannot always be pickled
        content = torch_bytes({"a": 1})
    if not zipped:
        content = hostile_pickle(rng, content) if how < 5 else scratched(rng, content)
    elif how < 5:
        content = repacked(content, lambda name, data: hostile_pickle(rng, data) if name.endswith(".pkl") else data)
    elif how == 5:
        content = repacked(content, lambda name, data: data, zipfile.ZIP_DEFLATED)
    elif how == 6:
        what = rng.choice(sorted(zipfile.ZipFile(io.BytesIO(content)).namelist()))
        new = rng.choice(
            (
                None,
                [],
                [(what, b"")],
                [("../../planted", b"x"), (what, b"x")],
                [(what, b"x"), (what, b"y")],
                [(what, b"\0" * 2**20)],
            )
        )
        content = repacked(content, lambda name, data: new if name == what else data)
    elif how == 7:
        content = claiming(content, rng.choice((2**32 - 2, 2**31, 0, 7)))
    elif how == 8:
        content = scratched(rng, content)
    path = place / "in" / f"a{rng.choice(('.pth', '.pt', '.bin'))}"
    path.write_bytes(content)
    return lambda: converted(path)


def state_file(rng: Random, place: Path) -> Attempt:
    state = dict(seed_state())
    if rng.random() < 0.3:
        state[rng.choice(STRINGS)] = state.pop(rng.choice(sorted(state)))
    path = place / "in" / f"a{rng.choice(sorted(FORMATS)) if rng.random() < 0.1 else '.safetensors'}"
    path.write_bytes(
        safetensors_of(rng, state, rng.choice(({}, {"format": "pt"}, {"a": 1}, None, [])) if rng.random() < 0.3 else {})
    )
    return lambda: converted(path)


def converted(path: Path) -> None:
    to_torch(to_flax({k: v for k, v in read_file(path).items() if k != "b.num"}, TEMPLATE).variables)


def checkpoint(rng: Random, place: Path) -> Attempt:
    root = place / "in" / "c"
    for name, content in seed_checkpoint().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    how = rng.randrange(3)
    manifest = json.loads((root / "manifest.json").read_bytes())
    if how == 0:
        (root / "manifest.json").write_bytes(json_text(rng, twisted(rng, manifest)))
    elif how == 1:
        path = root / "weights" / "_METADATA"
        path.write_bytes(json_text(rng, twisted(rng, json.loads(path.read_bytes()))))
    else:
        spoiled(rng, root, place)
    return lambda: load_checkpoint(root, TEMPLATE)


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


def looked_at(path: Path) -> None:
    images = jc.read_images(path, Small, batch=2)
    for block in images:
        assert np.isfinite(block).all() and block.shape[1:] == (16, 16, 3)
    assert len(images.names) == len(images) and images.digest


class Small:
    input_size, resize_size, mean, std = 16, 18, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)


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


@cache
def layers():
    return describe_architecture("alexnet")[0].layers


def feature(rng: Random, place: Path) -> Attempt:
    pieces = (
        *STRINGS,
        "features.3",
        "features.10",
        "classifier.6",
        ":",
        ":",
        "@",
        "9",
        "0",
        "-",
        "*",
        "*",
        "999",
        "1-3",
        "3-1",
        "1,1",
        "7,99",
        "x.npy",
        "٣",
        " ",
    )
    text = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 6)))
    if rng.random() < 0.5:
        text = (
            f"features.{rng.choice((0, 3, 6, 8, 10))}:{rng.choice(pieces)}{rng.choice(('', '@'))}{rng.choice(pieces)}"
        )
    if rng.random() < 0.3:
        rows = (
            np.random.default_rng(0)
            .standard_normal(rng.choice(((64,), (2, 64), (2, 5), (1, 1, 64))))
            .astype(rng.choice((np.float32, np.float64, np.int16)))
        )
        path = place / "in" / "a.npy"
        path.write_bytes(npy_of(rng, rows))
        text = f"features.0:{path}" + rng.choice(("", "@middle", "@1,2", "@"))
    return lambda: parse(text, layers()).labels


def page(rng: Random, place: Path) -> Attempt:
    """Names, as they may come out of files, on a page: the same elements as with plain ones."""
    words = "".join(rng.choice((*STRINGS, "a")) for _ in range(rng.randint(1, 3)))
    manifest = MANIFEST | {"feature": {"layer": words, "name": words, "position": None}, "model": words, words: [words]}

    def made(manifest: dict[str, Any]) -> str:
        found = jc.Circuit({}, manifest)
        label, lines = feature_label(manifest), table(manifest)
        entry = {"label": label, "summary": summary(found), "manifest": lines[:20], "layers": [[label, 1, 2, 3, 4]]}
        entry |= {"total": [1, 2, 3, 4], "numbers": manifest, "r": 0.5, "curve": None, "drivers": [(label, "data:,")]}
        entry["diagram"] = {"label": label, "all": manifest}
        rooms = {"package": "jaxcircuits.report", "rooms": ("jaxcircuits.diagram",)}
        return render("report.html", title=label, entries=[entry, entry], data=[entry["diagram"]] * 2, **rooms)

    def attempt():
        tame = MANIFEST | {"feature": {"layer": "a", "name": "b", "position": None}, "model": "m", "w": ["w"]}
        html = made(manifest)
        html.encode()
        assert elements(html) == elements(made(tame))

    return attempt


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, tuple(name for name, _ in attrs)))

    def handle_comment(self, data):
        self.found.append(("comment", ()))


def elements(html: str) -> list[tuple[str, tuple[str, ...]]]:
    parser = Elements()
    parser.feed(html)
    return parser.found


CASES: dict[str, Callable[[Random, Path], Attempt]] = {
    "circuit": circuit, "atlas": atlas, "state_dict": state_dict, "state_file": state_file, "checkpoint": checkpoint,
    "image": image, "array": array, "feature": feature, "page": page,
}  # fmt: skip


# ---- what must hold


class Hang(BaseException):
    pass


class Refused(ValueError):
    """The command line has said what is wrong."""


def command(*arguments: str) -> None:
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code in (0, 1, 2), result.output
    if result.exit_code == 1:
        assert arguments[0] == "atlas", result.output
    if result.exit_code == 2:
        raise Refused(result.stderr.strip().splitlines()[-1].removeprefix("Error: "))


@contextmanager
def at_most(seconds: int):
    """Ends what computes for so long, or waits ten times as long, as it would for a pipe."""

    def late(*_):
        raise Hang(f"more than {seconds} seconds")

    clocks = {signal.SIGALRM: (signal.ITIMER_REAL, 10 * seconds), signal.SIGPROF: (signal.ITIMER_PROF, seconds)}
    before = {which: signal.signal(which, late) for which in clocks}
    for clock, limit in clocks.values():
        signal.setitimer(clock, limit)
    try:
        yield
    finally:
        for which, (clock, _) in clocks.items():
            signal.setitimer(clock, 0)
            signal.signal(which, before[which])


def prepared(place: Path) -> Path:
    """An empty folder with what a case needs, and something that must stay as it is."""
    shutil.rmtree(place, ignore_errors=True)
    for folder in ("in", "out", "cwd"):
        (place / folder).mkdir(parents=True)
    (place / "victim").write_text("untouched")
    return place


def survives(kind: str, rng: Random, place: Path) -> str | None:
    """One case; the sentence with which it was refused, or None. Fails if anything else happens."""
    attempt = CASES[kind](rng, prepared(place))
    beside, said = set(os.listdir(place.parent)), None
    os.chdir(place / "cwd")
    with at_most(SECONDS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            attempt()
        except (jc.InputError, ConversionError, Refused) as error:
            said = str(error)
            assert said and said.isprintable() and len(said) < 2100, said
    assert not os.listdir(place / "cwd"), "something was written where nothing was asked for"
    assert (place / "victim").read_text() == "untouched"
    assert set(os.listdir(place)) == {"in", "out", "cwd", "victim"} and set(os.listdir(place.parent)) == beside
    assert not [path for path in (place / "out").rglob(".*")], "something was left half-written"
    return said
