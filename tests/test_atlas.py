"""Atlases: what is stored is what `extract` gives; nothing is lost, whatever happens, and nothing wrong is kept."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import jaxcircuits as jc
from jaxcircuits.atlas import store
from jaxcircuits.atlas.building import question
from jaxcircuits.atlas.lock import held
from tests.twins import random_variables

pytestmark = pytest.mark.filterwarnings("ignore:.*so that r is not defined")

HERE = Path(__file__).parents[1]
FEATURES = [jc.Features("layer1.conv1", range(5)), jc.Features("features.0", [6, 2])]
OPTIONS = {"keep": [0.5, 0.2], "chunk": 2, "batch": 2, "scores": "float32"}


def build(small, directory, features=FEATURES, **options):
    jc.build_atlas(small.model, small.images, features, directory=directory, **(OPTIONS | options))


def contents(directory):
    paths = sorted(path for path in Path(directory).rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(directory): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def made(small, tmp_path_factory):
    directory = tmp_path_factory.mktemp("made") / "atlas"
    build(small, directory)
    return directory


@pytest.fixture
def copied(made, tmp_path):
    shutil.copytree(made, tmp_path / "atlas")
    return tmp_path / "atlas"


def test_circuits_are_those_of_extract(small, made):
    atlas = jc.Atlas(made)
    circuits = list(
        jc.extract(small.model, small.images, FEATURES, keep=[0.5, 0.2], chunk=2, batch=2, with_scores=True)
    )
    assert len(circuits) == 14 and atlas.complete
    for circuit in circuits:
        (label,) = circuit.features.labels
        found = atlas.circuit(label, keep=circuit.manifest["keep"])
        assert found.manifest == circuit.manifest and list(found.masks) == list(circuit.masks)
        for name, mask in circuit.masks.items():
            np.testing.assert_array_equal(found.masks[name], mask)
            np.testing.assert_array_equal(found.scores[name], circuit.scores[name])
    assert atlas.features == tuple(circuit.features.labels[0] for circuit in circuits[::2])


def test_a_circuit_of_an_atlas_is_saved_like_any_other(made, tmp_path):
    circuit = jc.Atlas(made).circuit("features.0:2", keep=0.2)
    circuit.save(tmp_path / "one.safetensors")
    again = jc.Circuit.load(tmp_path / "one.safetensors")
    assert again.manifest == json.loads(json.dumps(circuit.manifest)) and again.stem == "features.0_2.snip.keep0.2"


@pytest.mark.parametrize("shape", [(3, 5), (8, 1), (1, 1), (4, 16)])
def test_packed_masks_bit_by_bit(shape):
    outputs, inputs = shape
    masks = np.random.default_rng(0).random((3, 2, inputs, outputs)) < 0.4
    bits = store.packed(masks)
    assert bits.dtype == np.uint8 and bits.shape == (3, 2, -(-outputs * inputs // 8))
    for f, k, o, i in np.ndindex(3, 2, outputs, inputs):
        place = o * inputs + i
        assert bool(bits[f, k, place // 8] >> (7 - place % 8) & 1) == masks[f, k, i, o]
    np.testing.assert_array_equal(store.unpacked(bits, shape), np.swapaxes(masks, -1, -2))


def test_layout(made):
    """What docs/atlas.md says, read without the library."""
    from pyarrow import parquet

    names = {str(path) for path in contents(made)}
    chunks = [f"layer1.conv1/0000{n}" for n in range(3)] + ["features.0/00000"]
    files = {f"{chunk}.{ending}" for chunk in chunks for ending in ("json", "safetensors")}
    assert names == files | {"atlas.json", "layer1.conv1/table.parquet", "features.0/table.parquet"}
    manifest = json.loads((made / "atlas.json").read_text())
    assert manifest["format"] == 1 and manifest["amounts"] == [{"keep": 0.5}, {"keep": 0.2}]
    assert manifest["groups"][0]["shapes"] == {"features.0": [8, 3], "layer1.conv1": [8, 4]}
    assert manifest["groups"][1]["channels"] == [6, 2]
    arrays = load_file(made / "layer1.conv1" / "00002.safetensors")
    assert arrays["mask/features.0"].shape == (1, 2, 3) and arrays["score/layer1.conv1"].shape == (1, 8, 4)
    kept = sum(np.unpackbits(arrays[f"mask/{name}"][0, 1]).sum() for name in ("features.0", "layer1.conv1"))
    assert kept == arrays["kept"][0, 1]
    table = parquet.read_table(made / "layer1.conv1" / "table.parquet").to_pylist()
    row = {"feature": "layer1.conv1:4", "keep": 0.2, "kernels": None, "kept": int(kept)}
    assert len(table) == 10 and row.items() <= table[-1].items()


def test_gone_on_with_in_the_same_bytes(small, made, copied):
    whole = contents(made)
    (copied / "layer1.conv1" / "00001.json").unlink()
    (copied / "layer1.conv1" / "table.parquet").unlink()
    (copied / "features.0" / ".00000.safetensors.99999.part").write_bytes(b"half of it")
    assert not jc.Atlas(copied).complete and len(jc.Atlas(copied).table()) == 10
    before = (copied / "layer1.conv1" / "00000.safetensors").stat().st_mtime_ns
    build(small, copied)
    assert contents(copied) == whole
    assert (copied / "layer1.conv1" / "00000.safetensors").stat().st_mtime_ns == before


def corrupt(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_verify_and_mend(small, made, copied):
    assert jc.verify_atlas(copied) == []
    corrupt(copied / "layer1.conv1" / "00002.safetensors")
    (copied / "layer1.conv1" / "00000.safetensors").unlink()
    (copied / "features.0" / "table.parquet").write_bytes(b"PAR1")
    faults = jc.verify_atlas(copied)
    assert [(Path(fault.file).relative_to(copied).as_posix(), fault.why.partition(" ")[0]) for fault in faults] == [
        ("layer1.conv1/00000.safetensors", "missing"),
        ("layer1.conv1/00002.safetensors", "corrupt"),
        ("features.0/table.parquet", "corrupt"),
    ]
    assert faults[0].features == ("layer1.conv1:0", "layer1.conv1:1")
    atlas = jc.Atlas(copied)
    with pytest.raises(jc.InputError, match=r"00002.safetensors' is corrupt .*checksum"):
        atlas.circuit("layer1.conv1:4", keep=0.5)
    assert atlas.circuit("layer1.conv1:3", keep=0.5).manifest["kept"] > 0
    with pytest.warns(UserWarning, match=r"00002.safetensors' is corrupt \(its checksum .* made again"):
        build(small, copied)
    assert contents(copied) == contents(made) and jc.verify_atlas(copied) == []


def test_a_chunk_of_another_atlas_is_found_out(small, made, copied):
    for ending in ("json", "safetensors"):  # whole files, of other features
        shutil.copy(copied / "layer1.conv1" / f"00000.{ending}", copied / "layer1.conv1" / f"00001.{ending}")
    (fault, *_) = jc.verify_atlas(copied)
    assert fault.file.endswith("00001.safetensors") and "other features" in fault.why
    text = (copied / "atlas.json").read_text()
    (copied / "atlas.json").write_text(text.replace('"criterion": "snip"', '"criterion": "magnitude"'))
    faults = jc.verify_atlas(copied)
    assert len(faults) == 4 and "atlas.json was changed" in faults[0].why


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"criterion": "magnitude"}, "not the same: criterion, absolute"),
        ({"keep": [0.5]}, "not the same: amounts"),
        ({"scores": None}, "not the same: scores"),
        ({"chunk": 4}, "not the same: chunk"),
        ({"batch": 1}, "not the same: batch"),
        ({"features": FEATURES[:1]}, "not the same: features"),
    ],
)
def test_another_question_is_refused(small, made, change, sentence):
    before = contents(made)
    with pytest.raises(jc.InputError, match=sentence):
        build(small, made, **change)
    assert contents(made) == before


def test_other_weights_images_and_versions_are_refused(small, made, copied):
    import dataclasses

    import jax

    other = dataclasses.replace(small.model, variables=jax.tree.map(lambda a: a * 1.5, small.model.variables))
    with pytest.raises(jc.InputError, match="not the same: weights"):
        jc.build_atlas(other, small.images, FEATURES, directory=made, **OPTIONS)
    with pytest.raises(jc.InputError, match="not the same: images"):
        jc.build_atlas(small.model, small.images[:4], FEATURES, directory=made, **OPTIONS)
    manifest = json.loads((copied / "atlas.json").read_text()) | {"format": 2}
    (copied / "atlas.json").write_text(json.dumps(manifest))
    with pytest.raises(jc.InputError, match="is an atlas of format 2; this version reads format 1"):
        jc.Atlas(copied)
    with pytest.raises(jc.InputError, match="format 2"):
        build(small, copied)


def test_directories_that_hold_something_else(small, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("x")
    for name in ("file", "folder"):
        with pytest.raises(jc.InputError, match=r"cannot be written|holds no atlas"):
            build(small, tmp_path / name)
        with pytest.raises(jc.InputError, match=r"there is no atlas|cannot be read"):
            jc.Atlas(tmp_path / name)
    assert os.listdir(tmp_path / "folder") == ["thesis.tex"]


@pytest.mark.parametrize(
    ("again", "name"),
    [
        (jc.Features("features.0", [2]), "features.0:2"),
        (jc.Features("features.0", [2], objective="sum"), "features.0:2"),
        (jc.Features("features.0", directions=np.eye(8)[4]), "features.0:direction-0"),
    ],
)
def test_two_features_of_one_name_are_refused(small, tmp_path, again, name):
    first = [jc.Features("features.0", [2, 1]), jc.Features("features.0", directions=np.eye(8)[3])]
    with pytest.raises(jc.InputError, match=f"the feature {name} is asked for twice"):
        build(small, tmp_path / "atlas", [*first, jc.Features("layer1.conv1"), again])
    assert not (tmp_path / "atlas").exists()


class Alike(nn.Module):
    """Layers whose names differ in case alone, and one with a long name."""

    @nn.compact
    def __call__(self, x):
        for name in ("conv", "Conv", "long" * 70):
            x = nn.relu(nn.Conv(2, (1, 1), name=name)(x))
        return x


def test_folders_differ_whatever_the_layers_are_called(tmp_path):
    model = jc.Model(Alike(), random_variables(Alike(), (1, 4, 4, 3)), name="alike", input_size=4)
    images = np.random.default_rng(0).standard_normal((2, 4, 4, 3), np.float32)
    jc.build_atlas(model, images, directory=tmp_path / "atlas", keep=[0.5, 0.5])
    assert jc.verify_atlas(tmp_path / "atlas") == []
    atlas = jc.Atlas(tmp_path / "atlas")
    assert len(atlas.features) == 6 and atlas.amounts == (0.5,)
    folders = [path.name.lower() for path in (tmp_path / "atlas").iterdir() if path.is_dir()]
    assert len(set(folders)) == 3 and max(map(len, folders)) <= 200
    assert len(atlas.statistics()) == 3


def test_a_direction_whose_file_has_no_utf8_name(small, tmp_path):
    features = jc.Features("features.0", directions=np.eye(8)[3], names=["b\udce4d-0"])
    build(small, tmp_path / "atlas", features)
    assert jc.verify_atlas(tmp_path / "atlas") == []
    assert jc.Atlas(tmp_path / "atlas").circuit("features.0:b\udce4d-0", keep=0.5)


def test_a_second_run_is_told(small, copied):
    (copied / "features.0" / "00000.json").unlink()
    with held(copied), pytest.raises(jc.InputError, match="another process is at work"):
        build(small, copied)
    build(small, copied)


def test_default_chunks_go_on_as_they_were_begun(small, made):
    """On a machine with another memory the default size of a chunk would be another."""
    plan = question(small.model, small.images, FEATURES, made, keep=[0.5, 0.2], scores="float32")
    assert [group.chunk for group in plan.groups] == [2, 2]


def test_directions_positions_and_mean_ablation(small, tmp_path):
    directions = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    features = [
        jc.Features("layer1.conv1", directions=directions, position="middle", objective="sum", names=["a", "b", "c"]),
        jc.Features("layer1.conv1", [1], position=(1, 2)),
    ]
    options = {"ablation": "mean", "criterion": "actgrad", "keep": 0.3, "chunk": 2, "batch": 5}
    jc.build_atlas(small.model, small.images, features, directory=tmp_path / "atlas", **options)
    atlas = jc.Atlas(tmp_path / "atlas")
    assert atlas.features[0] == "layer1.conv1:a@middle" and atlas.features[-1] == "layer1.conv1:1@1,2"
    for circuit in jc.extract(small.model, small.images, features, **options):
        found = atlas.circuit(circuit.features.labels[0])
        assert found.manifest == circuit.manifest and found.scores is None
        for name, mask in circuit.masks.items():
            np.testing.assert_array_equal(found.masks[name], mask)
            np.testing.assert_array_equal(found.offsets[name], circuit.offsets[name])
        np.testing.assert_equal(found.direction, circuit.direction)


def test_half_precision_scores_keep_small_numbers(small, copied, tmp_path):
    build(small, tmp_path / "half", scores="float16")
    full, half = (jc.Atlas(path).circuit("layer1.conv1:3", keep=0.5) for path in (copied, tmp_path / "half"))
    largest = max(score.max() for score in full.scores.values())
    for name, score in full.scores.items():
        np.testing.assert_allclose(half.scores[name], score, rtol=1e-3, atol=1e-6 * largest)
    stored = load_file(tmp_path / "half" / "layer1.conv1" / "00000.safetensors")
    assert (
        stored["score/features.0"].dtype == np.float16 and max(a.max() for n, a in stored.items() if "score" in n) == 1
    )


def test_a_disk_that_is_full(small, made, tmp_path):
    """No file may be longer than the chunks of features.0: as on a full disk, the others cannot be written."""
    longest = max(path.stat().st_size for path in [*(made / "features.0").glob("*.safetensors"), made / "atlas.json"])
    assert all(path.stat().st_size > longest for path in (made / "layer1.conv1").glob("0000[01].safetensors"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    features = list(reversed(FEATURES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (longest, limits[1]))
    try:
        with pytest.raises(jc.InputError, match=r"layer1.conv1/00000.safetensors' cannot be written"):
            build(small, tmp_path / "atlas", features)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert set(map(str, contents(tmp_path / "atlas"))) == {
        "atlas.json", "features.0/00000.json", "features.0/00000.safetensors"
    }  # fmt: skip
    build(small, tmp_path / "atlas", features)
    assert jc.verify_atlas(tmp_path / "atlas") == []


def test_an_image_that_vanishes(small, tmp_path):
    (tmp_path / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 13, 13, 3), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{i}.png")
    features, chunks = jc.Features("features.0", range(6)), 0

    def hide(done):
        nonlocal chunks
        chunks += done / (2 * 4 * 3)  # two features, four images, scored once and judged twice
        if chunks > 1.01 and path.exists():
            path.rename(tmp_path / "hidden.png")

    def run(name, **options):
        images = jc.read_images(tmp_path / "pictures", small.model)
        jc.build_atlas(small.model, images, features, directory=tmp_path / name, keep=[0.5, 0.2], chunk=2, **options)

    path = tmp_path / "pictures" / "2.png"
    with pytest.raises(jc.InputError, match=r"'2.png' in .* cannot be read: .*No such file"):
        run("atlas", progress=hide)
    assert len(list((tmp_path / "atlas" / "features.0").glob("*.json"))) == 1
    (tmp_path / "hidden.png").rename(path)
    run("atlas")
    run("whole")
    assert contents(tmp_path / "atlas") == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(900)  # forty seconds on a machine that is free
def test_killed_twenty_times(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HERE)}
    command = [sys.executable, HERE / "tests" / "atlas_killed.py", tmp_path, "20"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    killed = [run for run in runs if run["killed"]]
    assert len(killed) == 20 and sum(run["before"] < run["chunks"] < 16 for run in killed) >= 10, done.stdout
    assert all(run["chunks"] >= run["before"] for run in runs)  # nothing is lost
    whole, ends = contents(tmp_path / "whole"), list(tmp_path.glob("killed-*"))
    assert len(whole) == 16 * 2 + 3 and ends and all(contents(end) == whole for end in ends)


def test_what_a_killed_worker_has_begun_is_cleared_away(small, tmp_path):
    """Also where it was killed while the others went on."""
    left = []

    def killed(done):
        for folder in (path for path in (tmp_path / "atlas").iterdir() if path.is_dir()):
            left.append(folder / ".00001.safetensors.1.part")
            left[-1].touch()

    build(small, tmp_path / "atlas", progress=killed)
    assert left and not any(path.exists() for path in left)
    assert jc.verify_atlas(tmp_path / "atlas") == []


def test_chosen_layers(small, tmp_path):
    asked = {"criterion": "magnitude", "keep": 0.5}
    features = jc.Features("features.3", [1])
    jc.build_atlas(small.model, small.images, features, directory=tmp_path / "a", layers=["features.3"], **asked)
    (circuit,) = jc.extract(small.model, small.images, features, layers=["features.3"], **asked)
    found = jc.Atlas(tmp_path / "a").circuit("features.3:1")
    assert list(found.masks) == found.manifest["layers"] == ["features.3"]
    np.testing.assert_array_equal(found.masks["features.3"], circuit.masks["features.3"])
    with pytest.raises(jc.InputError, match="an atlas made otherwise"):
        jc.build_atlas(small.model, small.images, features, directory=tmp_path / "a", **asked)
