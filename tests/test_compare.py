"""`compare`: r on other images than those that scored, its intervals and averages, costs, files and the command."""

import csv
import importlib.util
import json
import re
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import jaxcircuits as jc
from jaxcircuits import costs
from jaxcircuits.cli import main
from jaxcircuits.cli.compare import _sets
from jaxcircuits.comparison import average, free_paths
from jaxcircuits.criteria import CRITERIA
from jaxcircuits.measures import resamples
from jaxcircuits.options import able
from tests import twins

FEATURES = [jc.Features("layer1.conv1", [6, 1]), jc.Features("features.0", [7])]
QUESTION = {"criteria": ("snip", "magnitude", "random"), "keeps": (0.7, 0.02), "number": 40, "seed": 3}
ALONE = {"criteria": ["random"], "keeps": [0.5], "number": 5}


@pytest.fixture(scope="module")
def tests():
    return np.random.default_rng(8).standard_normal((6, 13, 11, 3), np.float32)


@pytest.fixture(scope="module")
def found(small, tests):
    return jc.compare(small.model, small.images, FEATURES, test_images=tests, **QUESTION)


def test_means_of_removed_kernels_are_those_of_the_images_that_score(small, tests):
    features = FEATURES[0]
    found = jc.compare(small.model, small.images, features, test_images=tests, ablation="mean", **QUESTION)
    masks = jc.top_kernels(jc.score(small.model, small.images, features, criterion="magnitude"), keep=0.7)
    offsets = jc.mean_offsets(small.model, small.images, masks)
    expected = jc.correlation(small.model, tests, features, masks, ablation="mean", offsets=offsets)
    np.testing.assert_allclose(found.layers[features.layer].r[:, 1, 0], expected, atol=1e-6)
    assert found.manifest["ablation"] == "mean" and "leave their mean" in found.markdown()
    with pytest.raises(jc.InputError, match="mean ablation is of kernels and filters"):
        jc.compare(small.model, small.images, features, ablation="mean", granularity="weight", **ALONE)


def test_r_and_intervals_are_those_of_each_circuit_alone(small, tests, found):
    """Masks from the images that score, r on the others; the interval by repeating images as the resamples say."""
    weights = resamples(len(tests), 40, 3).astype(int)
    defined = 0
    for features in FEATURES:
        layer = found.layers[features.layer]
        assert layer.labels == features.labels and layer.r.shape == (len(features), 3, 2)
        full = twins.with_kernels(small.torch, {})(tests)[features.layer].numpy()
        for c, criterion in enumerate(QUESTION["criteria"]):
            scores = jc.score(small.model, small.images, features, criterion=criterion, seed=3)
            for k, keep in enumerate(QUESTION["keeps"]):
                masks = jc.top_kernels(scores, keep=keep)
                for f, channel in enumerate(features.channels):
                    kept = {name: np.asarray(mask[f]).T for name, mask in masks.items()}
                    circuit = twins.with_kernels(small.torch, kept)(tests)[features.layer].numpy()
                    x, y = circuit[:, channel].reshape(6, -1), full[:, channel].reshape(6, -1)
                    if np.ptp(x) == 0:
                        assert np.isnan(layer.r[f, c, k]) and np.isnan(layer.ends[f, c, k]).all()
                        continue
                    defined += 1
                    assert layer.r[f, c, k] == pytest.approx(np.corrcoef(x.ravel(), y.ravel())[0, 1], abs=1e-5)
                    many = [np.corrcoef(np.repeat(x, w, 0).ravel(), np.repeat(y, w, 0).ravel())[0, 1] for w in weights]
                    np.testing.assert_allclose(layer.ends[f, c, k], np.quantile(many, [0.025, 0.975]), atol=1e-5)
    assert 9 <= defined < 18  # some circuits are constant here
    assert found.constant == found.document()["constant"] == 18 - defined


def test_averages_over_features_and_layers(found):
    """A constant circuit counts as 0."""
    means = [np.where(np.isnan(layer.r), 0, layer.r).mean(0) for layer in found.layers.values()]
    for layer, mean in zip(found.layers.values(), means, strict=True):
        np.testing.assert_allclose(layer.average.r, mean, atol=1e-12)
        assert (layer.average.ends[..., 0] <= layer.average.ends[..., 1]).all()
        assert (layer.average.best.sum(0) <= 1 + 1e-9).all() and layer.average.best[:, 0].sum() == pytest.approx(1)
    np.testing.assert_allclose(found.overall.r, np.mean(means, 0), atol=1e-12)
    for row in found.wins():
        r = found.averages[row["layer"]].r[:, found.keeps.index(row["keep"])]
        assert row["criterion"] == (found.criteria[int(r.argmax())] if r.max() > 0 else None) and row["r"] == r.max()
        assert row["lead"] == pytest.approx(r.max() - np.sort(r)[-2])


def test_ties_and_what_is_not_defined():
    """Four resamples behind all images: criterion 0 wins two, one is a tie, one is not defined for it."""
    means = np.array([[[0.9, 0.8, 0.7, 0.5, np.nan]], [[0.8, 0.6, 0.6, 0.5, 0.1]]])
    result = average(means, 0.95)
    np.testing.assert_array_equal(result.r[:, 0], [0.9, 0.8])
    np.testing.assert_allclose(result.best[:, 0], [2.5 / 4, 1.5 / 4])
    assert average(np.full((2, 1, 3), np.nan), 0.95).best.tolist() == [[0.0], [0.0]]
    assert average(np.array([[[-0.1, -0.1, 0.1]], [[0.0, 0.0, 0.0]]]), 0.95).best.tolist() == [[0.5], [0.0]]


def test_features_that_nothing_can_be_said_of(small, tests, tmp_path):
    """On images that are all the same a feature may be constant; averages leave it out, tables say so."""
    black = np.zeros_like(tests)
    result = jc.compare(small.model, small.images, jc.Features("fc2", [1]), test_images=black, layers=["fc2"], **ALONE)
    layer = result.layers["fc2"]
    assert np.isnan(layer.r).all() and np.isnan(layer.average.r).all()
    assert result.wins()[0]["r"] is None and result.wins()[0]["lead"] is None
    assert ",random,0.5,,,," in result.csv() and "| 0.5 | constant |" in result.markdown()
    assert json.loads(result.save(tmp_path / "a")[3].read_text())["wins"][0]["r"] is None


def test_numbers_of_numpy_and_jax(small, tests, tmp_path):
    numbers: dict = {"keeps": jax.numpy.array([0.5, 0.25]), "seed": np.int64(3), "level": np.float32(0.5)}
    options = {**numbers, "number": np.int64(5), "criteria": ["random"], "batch": np.int32(2)}
    result = jc.compare(small.model, small.images, jc.Features("layer1.conv1", [6]), test_images=tests, **options)
    manifest = json.loads(result.save(tmp_path / "a")[3].read_text())["manifest"]
    assert [manifest[name] for name in ("keeps", "seed", "level", "resamples")] == [[0.5, 0.25], 3, 0.5, 5]


def test_a_layer_of_which_nothing_is_defined_is_left_out(small, tests):
    variables = jax.tree.map(np.array, small.model.variables)
    variables["params"]["features.0"]["kernel"][..., 2] = 0
    model = jc.Model(small.model.module, variables, apply_options={"train": False}, input_size=13)
    features = [jc.Features("features.0", [2]), jc.Features("layer1.conv1", [6])]
    found = jc.compare(model, small.images, features, test_images=tests, **ALONE)
    assert found.overall is not None and np.isnan(found.layers["features.0"].average.r).all()
    np.testing.assert_array_equal(found.overall.r, found.layers["layer1.conv1"].average.r)
    assert np.isfinite(found.overall.ends).all()


def test_scores_that_depend_on_keep(small, tests):
    features = jc.Features("layer1.conv1", [6])
    options = {"criteria": ["force"], "keeps": [0.8, 0.5], "steps": 1, "number": 5}
    result = jc.compare(small.model, small.images, features, test_images=tests, **options)
    for k, keep in enumerate([0.8, 0.5]):
        scores = jc.score(small.model, small.images, features, criterion="force", keep=keep, steps=1)
        r = jc.correlation(small.model, tests, features, jc.top_kernels(scores))
        np.testing.assert_allclose(result.layers["layer1.conv1"].r[:, 0, k], r, atol=1e-5)


def test_chunks_change_nothing(small, tests):
    features, steps = jc.Features("layer1.conv1", [6, 1, 2]), []
    options = {"criteria": ["magnitude", "random"], "keeps": [0.6, 0.3], "number": 9}
    one, many = (
        jc.compare(small.model, small.images, features, test_images=tests, chunk=c, progress=steps.append, **options)
        for c in (2, None)
    )
    assert steps == [2, 2, 1, 1, 3, 3]
    a, b = one.layers["layer1.conv1"], many.layers["layer1.conv1"]
    assert a.labels == b.labels
    np.testing.assert_allclose(a.r, b.r, atol=1e-6)
    np.testing.assert_allclose(a.ends, b.ends, atol=1e-6)
    np.testing.assert_allclose(a.average.ends, b.average.ends, atol=1e-6)


def test_warns_of_images_that_have_scored(small, tests):
    features = jc.Features("features.0", [7])
    with pytest.warns(UserWarning, match="5 of the 5 images that judge have scored, too"):
        jc.compare(small.model, small.images, features, **ALONE)
    some = np.concatenate([tests, small.images[3:]])
    with pytest.warns(UserWarning, match="2 of the 8 images"):
        jc.compare(small.model, small.images, features, test_images=some, **ALONE)


@pytest.mark.parametrize(
    ("features", "options", "why"),
    [
        (jc.Features("conv9", [1]), {}, "there is no layer 'conv9'"),
        (jc.Features("features.0", [8]), {}, "no channel 8"),
        (jc.Features("features.0", [1], position=np.zeros((5, 2), int)), {}, "5 positions for 6 images"),
        (FEATURES, {"criteria": ["snip", "best"]}, "unknown criterion 'best'"),
        (FEATURES, {"criteria": []}, "criteria are empty"),
        (FEATURES, {"keeps": []}, "keeps are empty"),
        (FEATURES, {"keeps": [0.5, 2]}, "keep is 2"),
        (FEATURES, {"absolute": "whole_set", "criteria": ["actgrad"]}, "actgrad has no absolute='whole_set'"),
        (FEATURES, {"granularity": "weight", "criteria": ["actgrad"]}, "actgrad has no granularity='weight'"),
        (FEATURES, {"criteria": ["snip", "random"], "steps": 3}, "steps are those of force and learned; snip, random"),
        (FEATURES, {"level": 1}, "level is 1"),
        (FEATURES, {"number": 0}, "resamples is 0; expected a whole number of at least 1"),
    ],
)
def test_errors_come_before_any_work(small, tests, features, options, why, monkeypatch):
    monkeypatch.setattr("jaxcircuits.scoring.scores_of_chunk", None)
    with pytest.raises(jc.InputError, match=why):
        jc.compare(small.model, small.images, features, test_images=tests, **options)


def test_criteria_that_have_such_scores():
    assert able("per_image", "kernel") == CRITERIA
    assert able("per_image", "filter") == ("snip", "actgrad", "force", "magnitude", "random")
    assert able("whole_set", "weight") == ("snip", "force", "magnitude", "random")


def test_tables(found):
    rows = list(csv.DictReader(found.csv().splitlines()))
    document = json.loads(found.json())
    assert document["rows"] == found.rows() and len(rows) == len(found.rows()) == 3 * 3 * 2
    for text, row in zip(rows, found.rows(), strict=True):
        for name, value in row.items():
            assert text[name] == ("" if value is None else str(value))
    layer = found.layers["layer1.conv1"]
    first = rows[0]
    assert (first["feature"], first["layer"], first["criterion"]) == ("layer1.conv1:6", "layer1.conv1", "snip")
    assert float(first["keep"]) == 0.7 and float(first["r"]) == layer.r[0, 0, 0]
    assert float(first["seconds"]) == layer.costs["snip"].seconds / 2
    manifest = document["manifest"]
    assert manifest["images"]["digest"] != manifest["test_images"]["digest"] and manifest["test_images"]["number"] == 6
    assert [f["layer"] for f in manifest["features"]] == ["layer1.conv1", "layer1.conv1", "features.0"]
    text = found.markdown()
    headings = re.findall("^## (.*)$", text, re.M)
    assert headings[:3] == ["layer1.conv1, mean of 2", "features.0:7", "mean of the layers"]
    best = layer.average.r[:, 0]
    assert f"**{best.max():.3f}** [" in text and "layer1.conv1:6" in headings


def test_files_are_of_one_question(small, tests, found, tmp_path):
    paths = found.save(tmp_path / "new" / "a")
    assert [path.name for path in paths] == ["a.csv", "a.md", "a.png", "a.json"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths)
    with Image.open(paths[2]) as image:
        assert image.format == "PNG" and image.width > 1500  # three panels
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    assert free_paths(tmp_path / "new" / "a", found.manifest, force=False) == paths  # the same question
    other = replace(found, manifest={**found.manifest, "seed": 4, "criteria": ["snip"], "versions": {}})
    before = paths[3].read_bytes()
    with pytest.raises(jc.InputError, match=r"not the same: criteria, seed\); --force"):
        other.save(tmp_path / "new" / "a")
    assert paths[3].read_bytes() == before
    other.save(tmp_path / "new" / "a", force=True)
    assert json.loads(paths[3].read_text())["manifest"]["seed"] == 4
    (tmp_path / "b.md").write_text("mine")
    with pytest.raises(jc.InputError, match=r"'.*b\.md' exists and is of no comparison"):
        found.save(tmp_path / "b")
    for content in ('{"manifest": "abc"}', '{"manifest": ["a"]}', '{"manifest": []}'):
        (tmp_path / "new" / "c.json").write_text(content)
        with pytest.raises(jc.InputError, match="--force"):
            found.save(tmp_path / "new" / "c")
    with pytest.raises(jc.InputError, match=r"b\.md' is a file"):
        found.save(tmp_path / "b.md" / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.md", "new"]


def test_compiling_is_no_work():
    program = jax.jit(lambda x: jnp.sin(x) @ x.T)
    x = jnp.ones((9, 9))
    start = time.perf_counter()
    with costs.measured() as first:
        program(x).block_until_ready()
        time.sleep(0.3)
    whole = time.perf_counter() - start
    with costs.measured() as second:
        program(x).block_until_ready()
    assert first.seconds >= 0.3 and first.compiling > 0 and first.seconds + first.compiling <= whole
    assert second.compiling == 0 and second.seconds < 0.3
    assert costs._covered([(0, 3), (1, 2), (4, 6), (9, 12)], 1, 10) == 2 + 2 + 1
    total = costs.Cost(1, 2, None)
    total += costs.Cost(1, 2, 5)
    assert total == costs.Cost(2, 4, 5)


def test_the_images_that_are_taken():
    assert _sets(None, None) == ("photos:a", "photos:b") == _sets("photos:a", None)
    assert _sets("photos:b", None) == ("photos:b", "photos:a") == _sets(None, "photos:a")
    assert _sets("a folder", None) == ("a folder", "a folder")
    assert _sets(None, "a folder") == ("photos:a", "a folder")
    assert _sets("photos", "photos:b") == ("photos", "photos:b")


@pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="photos need scikit-image")
def test_alexnet_on_photographs(alexnet):
    """SNIP's circuits are better than random ones on photographs that neither has seen."""
    scoring, judging = (jc.read_images(f"photos:{half}", alexnet, limit=4) for half in "ab")
    features = jc.Features("features.3", [1, 56])
    options = {"criteria": ["snip", "random"], "keeps": [0.5, 0.2], "number": 100}
    result = jc.compare(alexnet, scoring, features, test_images=judging, **options)
    r = result.layers["features.3"].average.r
    assert (r[0] > r[1]).all() and r[0, 0] > 0.9
    assert result.wins()[0]["sure"] > 0.9
    assert all(cost.seconds > 0 for cost in result.layers["features.3"].costs.values())


@pytest.mark.filterwarnings("default:.*have scored, too")
def test_the_command(networks_once, tmp_path, monkeypatch):
    networks_once(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    np.save("two.npy", pixels[:2])
    np.save("other.npy", pixels[2:])
    command = ["compare", "alexnet", "features.0:1", "features.0:5", "--criteria", "magnitude,random"]
    command += ["--keep", "0.5,.2", "--images", "two.npy"]
    result = CliRunner().invoke(main, [*command, "--test-images", "other.npy"])
    assert result.exit_code == 0 and not result.stderr, result.output
    stem = "circuits/alexnet/compare/features.0_1_and_1_more"
    assert result.stdout.splitlines()[-4:] == [f"{stem}{ending}" for ending in (".csv", ".md", ".png", ".json")]
    assert "scored on 2 images: two.npy, judged on 2: other.npy" in result.stdout
    assert re.search(r"^0.5 +-?\d.\d{3} +-?\d.\d{3}$", result.stdout, re.M)
    document = json.loads((tmp_path / f"{stem}.json").read_text())
    assert {row["feature"] for row in document["rows"]} == {"features.0:1", "features.0:5"}
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert re.search(r"^Error: .*not the same: test_images\); --force .*\n\Z", result.stderr, re.M)
    result = CliRunner().invoke(main, [*command, "--force", "--json"])
    assert result.exit_code == 0 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("Warning: 2 of the 2 images that judge have scored, too")
    assert json.loads(result.stdout)["files"][0] == f"{stem}.csv"
    for options, why in [
        (["--criteria", "snip,best"], f"unknown criterion 'best'; expected one of {', '.join(CRITERIA)}"),
        (["--criteria", ""], "unknown criterion ''"),
        (["--keep", "2"], "keep is 2"),
        (["--keep", "a"], "--keep is 'a'"),
        (["--test-images", "none"], "there is no 'none'"),
        (["--criteria", "actgrad", "--granularity", "weight"], "actgrad has no granularity='weight'"),
        (["--out", "two.npy"], "is a file"),
    ]:
        result = CliRunner().invoke(main, [*command, *options])
        assert result.exit_code == 2 and why in result.stderr.splitlines()[-1], result.stderr
