"""The layout of an atlas on disk: names, versions, chunks of packed masks, and their checksums.

    DIR/atlas.json                 what was asked: model, weights, images, criterion, amounts, features, chunks
    DIR/FOLDER/00000.safetensors   a chunk: the packed masks and numbers of up to so many features of one layer
    DIR/FOLDER/00000.json          its size and SHA-256; written last, so that a chunk without it is not there
    DIR/FOLDER/table.parquet       numbers of all circuits of the folder, once all its chunks are there

docs/atlas.md says what is in each. Everything is written beside its place and renamed.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcircuits.atlas.checking import NUMBERS, about, check_arrays, check_manifest, expected, most_bytes
from jaxcircuits.circuit import KEY
from jaxcircuits.errors import InputError
from jaxcircuits.features import Features
from jaxcircuits.files import write_whole
from weights_conversion.errors import reason
from weights_conversion.guards import MOST_JSON, file_size, read_json

FORMAT = 1
MANIFEST, TABLE = "atlas.json", "table.parquet"
MOST_RECORD = 1000  # bytes

# What differs when another question is asked; words of the sentence that refuses it.
COMPARED = (
    "model", "weights", "images", "criterion", "absolute", "ablation", "granularity", "seed", "precision", "steps",
    "amounts", "scores",
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """The features of one layer that are looked at in one way; they have a folder of their own.

    Attributes:
        folder: its name.
        features: F of them.
        shapes: {layer: (O, I)} of the masks, in call order.
        chunk, batch: features a chunk, images a device call. The last chunk may have fewer.
    """

    folder: str
    features: Features
    shapes: dict[str, tuple[int, int]]
    chunk: int
    batch: int

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    @property
    def chunks(self) -> int:
        return -(-len(self.features) // self.chunk)


class ChunkId(NamedTuple):
    """One chunk: `number` counts within its group."""

    group: int
    number: int


@dataclass(frozen=True)
class Plan:
    """What an atlas consists of, as `atlas.json` says it."""

    manifest: dict[str, Any]
    groups: tuple[Group, ...]

    @property
    def amounts(self) -> list[dict[str, Any]]:
        """K keyword arguments of `top_kernels`."""
        return self.manifest["amounts"]

    def __iter__(self) -> Iterator[ChunkId]:
        return (ChunkId(g, c) for g, group in enumerate(self.groups) for c in range(group.chunks))

    def features(self, which: ChunkId) -> Features:
        group = self.groups[which.group]
        return group.features[which.number * group.chunk : (which.number + 1) * group.chunk]

    def path(self, root: Path, which: ChunkId) -> Path:
        return root / self.groups[which.group].folder / f"{which.number:05d}.safetensors"

    @functools.cached_property
    def question(self) -> str:
        """A digest of all that was asked; every chunk carries it."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()


def written(plan: Plan) -> bytes:
    """`atlas.json`.

    Raises:
        InputError: it would be too long to be read again.
    """
    text = (json.dumps(plan.manifest, indent=1, allow_nan=False) + "\n").encode()
    if len(text) > MOST_JSON:
        raise InputError(f"the atlas's {MANIFEST} would have {len(text)} bytes, more than {MOST_JSON}; ask for less")
    return text


def read(root: Path) -> Plan:
    """The plan of the atlas in this directory.

    Raises:
        InputError: there is none, or it is of another version.
    """
    path = root / MANIFEST
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        raise InputError(f"there is no atlas in {str(root)!r}: it has no {MANIFEST}") from None
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{str(path)!r} is broken: {error}") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise InputError(f"{str(root)!r} is an atlas of format {found!r}; this version reads format {FORMAT}")
    try:
        check_manifest(manifest)
        plan = Plan(manifest, tuple(map(_group, manifest["groups"])))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{str(path)!r} is broken: {error}") from None
    if links := [group.folder for group in plan.groups if (root / group.folder).is_symlink()]:
        raise InputError(f"{str(root / links[0])!r} is a link; an atlas is read and written in its own directory only")
    return plan


def described(group: Group) -> dict[str, Any]:
    """A group as it stands in `atlas.json`; directions themselves stand in the chunks."""
    f = group.features
    position = f.position.tolist() if isinstance(f.position, np.ndarray) else f.position
    which = {"channels": list(f.channels)} if f.channels else {"directions": f.directions.tolist(), "names": f.names}  # pyright: ignore
    return {
        "folder": group.folder,
        "layer": f.layer,
        **which,
        "position": position,
        "objective": f.objective,
        "shapes": {name: list(shape) for name, shape in group.shapes.items()},
        "chunk": group.chunk,
        "batch": group.batch,
    }


def _group(found: Mapping[str, Any]) -> Group:
    position = found["position"]
    options: dict[str, Any] = {"objective": found["objective"]}
    options["position"] = np.asarray(position) if isinstance(position, list) else position
    if "channels" in found:
        options["channels"] = found["channels"]
    else:
        options |= {"directions": np.asarray(found["directions"], np.float32), "names": found["names"]}
    shapes = {name: (int(o), int(i)) for name, (o, i) in found["shapes"].items()}
    return Group(found["folder"], Features(found["layer"], **options), shapes, int(found["chunk"]), int(found["batch"]))


def packed(masks: np.ndarray) -> np.ndarray:
    """Masks (..., I, O) as bits, in the order (O, I) and from the highest bit on: (..., bytes) uint8."""
    masks = np.ascontiguousarray(np.swapaxes(masks, -1, -2), bool)
    return np.packbits(masks.reshape(*masks.shape[:-2], -1), axis=-1)


def unpacked(bits: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(..., bytes) back to (..., O, I) bool, shape being (O, I)."""
    flat = np.unpackbits(bits, axis=-1, count=shape[0] * shape[1])
    return flat.view(bool).reshape(*bits.shape[:-1], *shape)


class Chunk(NamedTuple):
    """What one chunk holds: numbers and packed masks of F features at K amounts.

    Attributes:
        masks: {layer: (F, K, bytes) uint8}.
        relevant: (F,). kept, effective: (F, K). correlation: (F, K), nan where it is not defined.
        more: what is there on request: scores, offsets, by their names in the file.
        about: {"sparse", "versions"}: how it was computed.
    """

    masks: dict[str, np.ndarray]
    relevant: np.ndarray
    kept: np.ndarray
    effective: np.ndarray
    correlation: np.ndarray
    more: dict[str, np.ndarray]
    about: dict[str, Any]


def write_chunk(plan: Plan, root: Path, which: ChunkId, chunk: Chunk) -> int:
    """Write a chunk, then its record; the number of bytes.

    Raises:
        InputError: it cannot be written.
    """
    from safetensors.numpy import save

    tensors = {f"mask/{name}": np.ascontiguousarray(bits) for name, bits in chunk.masks.items()}
    tensors |= {name: np.ascontiguousarray(getattr(chunk, name), kind) for name, kind in NUMBERS.items()}
    tensors |= {name: np.ascontiguousarray(array) for name, array in chunk.more.items()}
    said = {"format": FORMAT, "question": plan.question, "labels": list(plan.features(which).labels), **chunk.about}
    content = save(tensors, {KEY: json.dumps(said, sort_keys=True)})
    path = plan.path(root, which)
    record = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    record_path(path).unlink(missing_ok=True)  # of a chunk that is made again
    write_whole(path, content)
    write_whole(record_path(path), (json.dumps(record) + "\n").encode())
    return len(content)


def record_path(path: Path) -> Path:
    return path.with_suffix(".json")


def trouble(plan: Plan, root: Path, which: ChunkId) -> str | None:
    """Why a chunk has to be made: "missing", or what is wrong with it; None if it is whole."""
    try:
        _whole(plan, root, which)
    except ValueError as error:
        return str(error)
    return None


def read_chunk(plan: Plan, root: Path, which: ChunkId) -> Chunk:
    """A chunk, checked against its checksum.

    Raises:
        InputError: it is missing or corrupt.
    """
    from safetensors.numpy import load

    try:
        content = _whole(plan, root, which)
        arrays, said, shapes = load(content), about(content), plan.groups[which.group].shapes
        check_arrays(arrays, _expected(plan, which), shapes, said)
    except Exception as error:  # a broken file may raise anything
        what = str(error).partition("\n")[0]
        again = "the command that made the atlas makes it again"
        raise InputError(f"the chunk {str(plan.path(root, which))!r} is {what}; {again}") from None
    numbers = {name: arrays.pop(name) for name in NUMBERS}
    masks = {name: arrays.pop(f"mask/{name}") for name in shapes}
    return Chunk(masks, **numbers, more=arrays, about={key: said[key] for key in ("sparse", "versions")})


def _expected(plan: Plan, which: ChunkId):
    return expected(plan.manifest, plan.groups[which.group].shapes, len(plan.features(which)))


def _whole(plan: Plan, root: Path, which: ChunkId) -> bytes:
    """A chunk's content; a ValueError says "missing" or "corrupt (why)"."""
    path, labels = plan.path(root, which), plan.features(which).labels
    try:
        record = read_json(record_path(path), MOST_RECORD)
    except FileNotFoundError:
        raise ValueError("missing") from None
    except OSError as error:
        raise ValueError(f"unreadable ({error.strerror})") from None
    except ValueError:
        raise ValueError("corrupt (its record is no JSON)") from None
    try:
        size = file_size(path)
        if not isinstance(record, dict) or size != record.get("bytes"):
            raise ValueError("corrupt (its size is not that of its record)")
        if size > most_bytes(_expected(plan, which), labels):
            raise ValueError("corrupt (it is larger than what it is to hold)")
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError("missing") from None
    except (OSError, MemoryError) as error:
        raise ValueError(f"unreadable ({reason(error)})") from None
    if hashlib.sha256(content).hexdigest() != record.get("sha256"):
        raise ValueError("corrupt (its checksum is not that of its record)")
    said = about(content)
    if said.get("question") != plan.question:
        raise ValueError(f"of another atlas, or {MANIFEST} was changed")
    if said.get("labels") != list(labels):
        raise ValueError("a chunk of other features")
    return content
