"""Weights, and kernels to import: .pth, .safetensors, orbax checkpoints."""

import io
import json
import zipfile
from collections import OrderedDict
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from jaxcircuits.pytorch.importing import are_masks, read_kernels
from tests.hostile.arrays import safetensors_of
from tests.hostile.mutations import STRINGS, json_text, scratched, spoiled, twisted
from tests.hostile.names import layers
from tests.hostile.pickles import Evil, claiming, hostile_pickle, repacked, torch_bytes
from tests.hostile.survival import Attempt
from weights_conversion import load_checkpoint, read_file, save_checkpoint, to_flax, to_torch
from weights_conversion.files import FORMATS


@cache
def seed_state() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"a.weight": rng.random((2, 3), np.float32), "a.bias": rng.random(2, np.float32), "b.num": np.array(3)}


TEMPLATE = {"params": {"a": {"kernel": np.zeros((3, 2), np.float32), "bias": np.zeros(2, np.float32)}}}


@cache
def seed_checkpoint() -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        root = Path(folder, "c")
        save_checkpoint(
            root, to_flax({k: seed_state()[k] for k in ("a.weight", "a.bias")}, TEMPLATE).variables, {}, {"model": "x"}
        )
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


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
    path = place / "in" / f"a{rng.choice(('.pth', '.pt', '.bin'))}"
    path.write_bytes(torch_file(rng, state, zipped))
    return lambda: converted(path)


def torch_file(rng: Random, state: Any, zipped: bool) -> bytes:
    """What torch.save makes of it, or nearly."""
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
    return content


@cache
def seed_kernels() -> dict[str, np.ndarray]:
    return {f"features.{n}": np.random.default_rng(n).random(shape) for n, shape in ((0, (64, 3)), (3, (192, 64)))}


def kernels(rng: Random, place: Path) -> Attempt:
    """Masks and scores to import."""
    arrays = {name: array < 0.3 if rng.random() < 0.5 else array for name, array in seed_kernels().items()}
    name = rng.choice(sorted(arrays))
    how, old = rng.randrange(6), arrays.pop(name)
    if how < 4:
        wrong = (
            old.T,
            old[:0],
            np.full(old.shape, np.nan),
            old[..., None, None],
            old[None],
            old * 1e308,
            old.astype(np.int8),
            old,
        )
        arrays[rng.choice(STRINGS) if how == 0 else name] = rng.choice(wrong)
    if rng.random() < 0.1:
        path = place / "in" / "a.safetensors"
        path.write_bytes(safetensors_of(rng, arrays, {}))
    else:
        state: Any = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        odd = ([], [[]], 7, None, "x", list(state.values()), {"masks": state}, {"scores": list(state.values())})
        state = rng.choice(odd) if rng.random() < 0.3 else state
        path = place / "in" / "a.pt"
        path.write_bytes(torch_file(rng, state, rng.random() < 0.8))
    model = SimpleNamespace(name="alexnet", layers=layers())
    return lambda: are_masks(read_kernels(path, model))  # pyright: ignore[reportArgumentType]


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
