"""Weights, pictures and circuits that are hostile or broken, one by one, and honest ones, which are read."""

import json
import os
import re
from collections import OrderedDict
from random import Random

import numpy as np
import pytest
import torch

import jaxcircuits as jc
from tests.hostile.arrays import safetensors_of
from tests.hostile.circuits import MANIFEST, seed_arrays
from tests.hostile.pictures import many_scans, seed_image
from weights_conversion import ConversionError, read_file, save_checkpoint


@pytest.mark.parametrize(
    "key, value",
    [("input_size", 10**9), ("mean", [0, 0]), ("std", [1, 0, 1]), ("resize_size", "x"), ("interpolation", [])],
)
def test_checkpoints_that_ask_for_the_moon(key, value, tmp_path):
    tree = {"params": {"a": {"bias": np.zeros(2, np.float32)}}}
    save_checkpoint(tmp_path / "c", tree, {}, {"model": "alexnet", key: value})
    with pytest.raises(jc.InputError, match=f"has {key} {re.escape(repr(value))} in its manifest"):
        jc.load("alexnet", weights=tmp_path / "c")


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    for name in ("a.pth", "a.safetensors", "a.npy", "a.png", "manifest.json", "atlas.json"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "zeros.npy").symlink_to("/dev/zero")
    for path in (tmp_path / "a.pth", tmp_path / "a.safetensors"):
        with pytest.raises(ConversionError, match="no regular file"):
            read_file(path)
    for name in ("a.npy", "a.png", "zeros.npy"):
        with pytest.raises(jc.InputError, match="no regular file"):
            jc.read_images(tmp_path / name)
    for read in (jc.Atlas, lambda folder: jc.Circuit.load(folder / "a.safetensors")):
        with pytest.raises(jc.InputError, match="no regular file"):
            read(tmp_path)


@pytest.mark.parametrize("weights", ["random:" + "9" * 5000, "~\0", "a\0.pth"])
def test_sources_that_a_manifest_may_name(weights, tmp_path):
    with pytest.raises(jc.InputError, match="weights are"):
        jc.load("alexnet", weights=weights)
    with pytest.raises(jc.InputError, match="no name of a data set"):
        jc.read_images("tfds:mnist/data_dir=..")


def test_pictures_that_take_for_ever(tmp_path):
    (tmp_path / "a.jpg").write_bytes(many_scans(seed_image("jpg"), 700))
    with pytest.raises(jc.InputError, match="more than 100 scans"):
        jc.read_images(tmp_path / "a.jpg")


def test_numbers_that_are_not_there(tmp_path):
    torch.save({"a.weight": torch.zeros(1).expand(2**30, 2**30)}, tmp_path / "a.pth")
    with pytest.raises(ConversionError, match="claims to hold far more numbers than a file of"):
        read_file(tmp_path / "a.pth")
    manifest = {"jaxcircuits": json.dumps(MANIFEST)}
    content = safetensors_of(Random(1), seed_arrays("plain"), manifest)
    (tmp_path / "a").write_bytes(content.replace(b"[64, 3]", b"[64,99]"))
    with pytest.raises(jc.InputError, match="is no circuit file"):
        jc.Circuit.load(tmp_path / "a")


@pytest.mark.parametrize("zipped", [True, False])
def test_honest_checkpoints_are_read(zipped, tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam([{"params": [p]} for p in module.parameters()])  # each with the same tuple of betas
    module(torch.ones(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    content = {"state_dict": module.half().state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read_file(tmp_path / "a.pth")
    assert list(found) == list(module.state_dict()) and found["0.weight"].dtype == np.float32


@pytest.mark.parametrize("hidden", ["numel", "element_size", "get"])
def test_attributes_that_hide_others(hidden, tmp_path):
    """PyTorch's own way of reading weights only sets what a file says on tensors and dictionaries."""
    tensor, state = torch.ones(3), OrderedDict()
    state["a"] = tensor
    setattr(tensor if hidden in ("numel", "element_size") else state, hidden, 1)
    torch.save(state, tmp_path / "a.pth")
    np.testing.assert_array_equal(read_file(tmp_path / "a.pth")["a"], np.ones(3))
