"""Circuit files: they come back as they were saved, and whatever else lies there is refused in one sentence."""

import json
import os
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

import jaxcircuits as jc
from jaxcircuits.circuit import COMPUTED, stem
from tests import manifests

rng = np.random.default_rng(0)
MASKS = {"features.10": rng.random((3, 4)) < 0.5, "features.0": rng.random((2, 3)) < 0.5}
MANIFEST = manifests.MANIFEST | {
    "feature": {"layer": "features.10", "channel": 3, "position": None},
    "layers": list(MASKS),
}


def circuit(scores=False, direction=None, offsets=None, **changes):
    values = {name: rng.random(mask.shape, np.float32) for name, mask in MASKS.items()} if scores else None
    return jc.Circuit(MASKS, MANIFEST | changes, scores=values, offsets=offsets, direction=direction)


def feature(**changes):
    return {"feature": MANIFEST["feature"] | changes}


def named(name="dirs-0", **changes):
    return {"feature": {"layer": "features.10", "name": name, "position": None} | changes}


DIRECTION = np.arange(4, dtype=np.float32)
OFFSETS = {name: rng.standard_normal(mask.shape[1]).astype(np.float32) for name, mask in MASKS.items()}


@pytest.mark.parametrize(
    "made",
    [
        circuit(),
        circuit(scores=True, correlation=None),
        circuit(**feature(position=[6, 7]), kernels=12, keep=None),
        circuit(**feature(position=[[6, 7], [0, 0]])),
        circuit(**feature(position="argmax")),
        circuit(direction=DIRECTION, scores=True, **named(position="middle")),
        circuit(offsets=OFFSETS, scores=True, ablation="mean"),
        circuit(ablation="zero"),
    ],
)
def test_round_trip(made, tmp_path):
    made.save(tmp_path / "new" / "a.safetensors")
    again = jc.Circuit.load(tmp_path / "new" / "a.safetensors")
    assert again.manifest == made.manifest and again.stem == made.stem
    assert list(again.masks) == list(MASKS), "layers stay in call order"
    for name in MASKS:
        np.testing.assert_array_equal(again.masks[name], made.masks[name])
        if made.scores is not None:
            np.testing.assert_array_equal(again.scores[name], made.scores[name])
        if made.offsets is not None:
            np.testing.assert_array_equal(again.offsets[name], made.offsets[name])
    assert (again.scores is None, again.offsets is None) == (made.scores is None, made.offsets is None)
    assert again.ablation == ("mean" if made.offsets else "zero")
    assert again.features.labels == made.features.labels and again.features.place == made.features.place
    np.testing.assert_array_equal(again.features.matrix(4), made.features.matrix(4))


def test_files_hold_output_by_input(tmp_path):
    circuit(scores=True).save(tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    assert set(tensors) == {f"{kind}/{name}" for kind in ("mask", "score") for name in MASKS}
    assert tensors["mask/features.0"].dtype == bool and tensors["score/features.0"].dtype == np.float32
    np.testing.assert_array_equal(tensors["mask/features.0"], MASKS["features.0"].T)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "features.10_3.snip.keep0.05"),
        ({"keep": 1.0}, "features.10_3.snip.keep1"),
        ({"keep": None, "kernels": 200}, "features.10_3.snip.kernels200"),
        (feature(position=[6, 7]), "features.10_3@6,7.snip.keep0.05"),
        (feature(position=[[6, 7]]), "features.10_3@given.snip.keep0.05"),
        (feature(position="middle"), "features.10_3@middle.snip.keep0.05"),
        (named(), "features.10_dirs-0.snip.keep0.05"),
        ({"ablation": "zero"}, "features.10_3.snip.keep0.05"),
        ({"ablation": "mean"}, "features.10_3.snip.mean.keep0.05"),
        ({"group": {"label": "cats/../x", "images": [0]}}, "features.10_3.cats_.._x.snip.keep0.05"),
        (named("../../../etc/passwd"), "features.10_.._.._.._etc_passwd.snip.keep0.05"),
        (feature(layer="/a\\b\0c"), "_a_b_c_3.snip.keep0.05"),
    ],
)
def test_stems_stay_in_their_folder(changes, expected):
    assert stem(MANIFEST | changes) == expected
    assert os.path.basename(expected) == expected


def test_what_is_overwritten(tmp_path):
    path = tmp_path / "a.safetensors"
    circuit().save(path)
    first = path.read_bytes()
    circuit().save(path)
    assert path.read_bytes() == first
    computed = {"correlation": 0.25, "kept": 8, "effective": 6, "relevant": 17, "sparse": True, "versions": {}}
    computed["group_correlation"] = 0.5
    assert set(computed) == COMPUTED
    circuit(**computed).save(path)  # the same question
    for other in (circuit(keep=0.1), circuit(seed=3), jc.Circuit({"features.0": MASKS["features.0"]}, MANIFEST)):
        before = path.read_bytes()
        with pytest.raises(jc.InputError, match=r"made otherwise \(not the same: (keep|seed|layers)\); --force"):
            other.save(path)
        assert path.read_bytes() == before
        other.save(path, force=True)
        circuit().save(path, force=True)
    with pytest.raises(jc.InputError, match="is no JSON"):
        circuit(seed={1}).save(path)
    path.write_bytes(b"a thesis")
    with pytest.raises(jc.InputError, match="is no circuit file; --force"):
        circuit().save(path)
    assert path.read_bytes() == b"a thesis"
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_nothing_is_left_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(jc.InputError, match=r"cannot be written: .*file' is a file"):
        circuit().save(tmp_path / "file" / "a.safetensors")
    with pytest.raises(jc.InputError, match="cannot be written: File name too long"):
        circuit().save(tmp_path / "b" / "c" / ("a" * 300))
    with pytest.raises(jc.InputError, match="cannot be written"):
        circuit().save(tmp_path / "a\0b")
    with pytest.raises(jc.InputError, match="manifest cannot be written as JSON"):
        circuit(note={1, 2}).save(tmp_path / "a")
    with pytest.raises(jc.InputError, match="manifest cannot be written as JSON"):
        circuit(correlation=float("nan")).save(tmp_path / "a")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        circuit().save(tmp_path / "b" / "c" / "a.safetensors")
    assert os.listdir(tmp_path) == ["file"]


def saved(path, tensors, manifest=MANIFEST, key="jaxcircuits", **changes):
    text = manifest if isinstance(manifest, str) else json.dumps({"format": 1} | manifest | changes)
    path.write_bytes(save(tensors, {key: text}))
    return path


TENSORS = {f"mask/{name}": np.ascontiguousarray(mask.T) for name, mask in MASKS.items()}


def broken_bytes():
    whole = save(TENSORS, {"jaxcircuits": json.dumps({"format": 1} | MANIFEST)})
    yield b""
    yield b"\x00" * 7
    yield struct.pack("<Q", 2**60) + b"{}"
    yield struct.pack("<Q", 2**64 - 1)
    yield struct.pack("<Q", 10) + b"not json!!"
    yield b"PK\x03\x04" * 100
    yield whole[:20]
    yield whole[:-1]
    yield whole + b"more"
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}).encode()
    yield struct.pack("<Q", len(header)) + header + b"1234"


@pytest.mark.parametrize("content", list(broken_bytes()))
def test_no_safetensors(content, tmp_path):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(jc.InputError, match="is no circuit file") as caught:
        jc.Circuit.load(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path):
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file"), ("a\0b", "null")):
        with pytest.raises(jc.InputError, match=f"cannot be read: .*{why}"):
            jc.Circuit.load(path)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model": 3}, "model of the wrong type, int"),
        ({"model": ["alexnet"]}, "model of the wrong type, list"),
        ({"weights": "lpips"}, "no weights.source"),
        ({"weights": {"source": None, "sha256": ""}}, r"weights.source of the wrong type, NoneType"),
        ({"feature": []}, "no feature.layer"),
        (feature(layer=["features.10"]), "feature.layer of the wrong type"),
        (feature(channel=True), "feature.channel of the wrong type, bool"),
        (feature(channel="3"), "feature.channel of the wrong type"),
        (feature(name="both"), "one of a feature's channel and name"),
        (feature(position="here"), "unknown position 'here'"),
        (feature(position=[1]), "unknown position"),
        (feature(position=[[1, 2], [3]]), "inhomogeneous"),
        (feature(position=[10**30, 0]), "unknown position"),
        (feature(position=[[], "x"]), "inhomogeneous|unknown position"),
        (named(), "neither a channel nor a direction"),
        ({"objective": "least"}, "unknown objective 'least'"),
        ({"keep": "a"}, "keep of the wrong type"),
        ({"keep": None}, "one of keep and kernels"),
        ({"correlation": "high"}, "correlation of the wrong type"),
        ({"layers": [["features.0"], {}]}, "'layers' that are not names"),
        ({"layers": ["features.0"]}, "not those of the layers"),
        ({"layers": ["../../etc", "features.0"]}, "not those of the layers"),
        ({"layers": 2**70}, "layers of the wrong type"),
        ({"ablation": 1}, "ablation of the wrong type"),
        ({"ablation": "mean"}, "not an offset for each mask"),
        ({"format": 2}, "not of format 1"),
        ({"format": None}, "not of format 1"),
    ],
)
def test_wrong_manifests(changes, why, tmp_path):
    with pytest.raises(jc.InputError, match=f"is no circuit file: .*({why})"):
        jc.Circuit.load(saved(tmp_path / "a", TENSORS, **changes))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("[" * 100_000, "nested too deeply"),
        ("[1]", "not of format"),
        (json.dumps({"format": 1} | MANIFEST).replace("0.05", "NaN"), "holds NaN"),
        (json.dumps({"format": 1} | MANIFEST).replace("0.05", "1e999"), "keep = inf"),
        (json.dumps({"format": 1} | MANIFEST).replace("0.05", "9" * 5000), "limit|wrong"),
    ],
)
def test_wrong_json(text, why, tmp_path):
    with pytest.raises(jc.InputError, match=f"is no circuit file: .*({why})"):
        jc.Circuit.load(saved(tmp_path / "a", TENSORS, text))
    with pytest.raises(jc.InputError, match="no metadata 'jaxcircuits'"):
        jc.Circuit.load(saved(tmp_path / "a", TENSORS, text, key="other"))


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({}, "not those of the layers"),
        (TENSORS | {"mask/features.3": TENSORS["mask/features.0"]}, "not those of the layers"),
        (TENSORS | {"mask/features.0": np.ones((3, 2), np.uint8)}, "not bool of shape"),
        (TENSORS | {"mask/features.0": np.ones((3, 2, 1), bool)}, "not bool of shape"),
        (TENSORS | {"mask/features.0": np.full((3, 2), 7, np.uint8).view(bool)}, "not bool of shape"),
        (TENSORS | {"score/features.0": np.ones((3, 2), np.float64)}, "not finite float32 of the masks' shapes"),
        (TENSORS | {"score/features.0": np.ones((2, 3), np.float32)}, "not finite float32 of the masks' shapes"),
        (
            TENSORS | {"score/features.0": np.full((3, 2), np.nan, np.float32)},
            "not finite float32 of the masks' shapes",
        ),
        (TENSORS | {"direction": DIRECTION}, "neither a channel nor a direction"),
        (TENSORS | {"offset/features.0": OFFSETS["features.0"]}, "not an offset for each mask"),
        (TENSORS | {"offset/features.0": DIRECTION}, "offsets are not finite float32 of shape"),
        (TENSORS | {"offset/features.0": OFFSETS["features.0"] * np.nan}, "offsets are not finite float32 of shape"),
        (
            TENSORS | {"offset/features.0": OFFSETS["features.0"].astype(float)},
            "offsets are not finite float32 of shape",
        ),
    ],
)
def test_wrong_arrays(tensors, why, tmp_path):
    with pytest.raises(jc.InputError, match=f"is no circuit file: .*{why}"):
        jc.Circuit.load(saved(tmp_path / "a", tensors))


@pytest.mark.parametrize("direction", [DIRECTION[None], DIRECTION.astype(int), DIRECTION * np.nan, DIRECTION * 0])
def test_wrong_directions(direction, tmp_path):
    with pytest.raises(jc.InputError, match=r"is no circuit file: .*direction"):
        jc.Circuit.load(saved(tmp_path / "a", TENSORS | {"direction": direction}, **named()))


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.just("../../x")
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


@st.composite
def mutated(draw):
    """A valid manifest, in which up to three places hold something else, or nothing."""
    manifest = json.loads(json.dumps({"format": 1} | MANIFEST))
    for _ in range(draw(st.integers(1, 3))):
        inside = manifest
        key = draw(st.sampled_from(sorted(inside)))
        if isinstance(inside[key], dict) and inside[key] and draw(st.booleans()):
            inside = inside[key]
            key = draw(st.sampled_from(sorted(inside)))
        if draw(st.booleans()):
            inside[key] = draw(values)
        elif len(inside) > 1:
            del inside[key]
    return manifest


@given(mutated(), st.sampled_from([{}, {"direction": DIRECTION}, {"score/features.0": np.ones((3, 2), np.float32)}]))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_manifests(tmp_path, manifest, more):
    path = saved(tmp_path / "a", TENSORS | more, json.dumps(manifest))
    try:
        read = jc.Circuit.load(path)
    except jc.InputError as error:
        assert str(error).startswith(repr(str(path)))
    else:
        assert os.path.basename(read.stem) == read.stem and len(read.features) == 1
        read.save(tmp_path / "b", force=True)


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_bytes(tmp_path, data):
    content = bytearray(save(TENSORS, {"jaxcircuits": json.dumps({"format": 1} | MANIFEST)}))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    (tmp_path / "a").write_bytes(content)
    try:
        jc.Circuit.load(tmp_path / "a")
    except jc.InputError as error:
        assert str(error)
