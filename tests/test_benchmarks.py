"""The benchmarks: baselines agree with jaxcircuits, the arithmetic is counted right, reports follow from the JSON."""

import json
import re
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import jaxcircuits as jc
from benchmarks import arithmetic, measure, precision, programs, reference, report, strong
from benchmarks.__main__ import main
from benchmarks.cases import FULL, QUICK, SCALING, Case, gigaflops
from benchmarks.engines import Ours, Torch
from benchmarks.torch_networks import Convolutions
from jaxcircuits.faithfulness import KEEPS
from jaxcircuits.pooling import max_pool
from tests.twins import random_variables

POOLS = {"features.0": (3, 2), "features.2": (2, 2)}
TARGET = "features.3"
CHANNELS = (4, 0, 2, 4)


class Chain(nn.Module):
    """What AlexNet and VGG have in common, small."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (5, 5), strides=2, padding=2, name="features.0")(x))
        x = max_pool(x, 3, 2)
        x = nn.relu(nn.Conv(7, (5, 5), padding=2, name="features.1")(x))
        x = nn.relu(nn.Conv(9, (3, 3), padding=1, name="features.2")(x))
        x = max_pool(x, 2, 2)
        x = nn.relu(nn.Conv(5, (3, 3), padding=1, name="features.3")(x))
        return nn.Dense(2, name="classifier")(x.mean((1, 2)))


@pytest.fixture(scope="module")
def model() -> jc.Model:
    return jc.Model(Chain(), random_variables(Chain(), (1, 27, 27, 3)), name="chain", input_size=27)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((3, 27, 27, 3), np.float32)


@pytest.fixture(scope="module")
def torch_side(model, images):
    """The network and the images in PyTorch."""
    return Convolutions(model, TARGET, POOLS), torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("what", ["snip", "snip whole_set", "actgrad"])
@pytest.mark.parametrize("engine", [reference, strong])
def test_baselines_agree(model, images, torch_side, engine, what, monkeypatch):
    monkeypatch.setitem(strong.TOGETHER, "actgrad", 3)  # more than one block of features
    monkeypatch.setitem(strong.TOGETHER, "snip", 6)
    criterion, _, absolute = what.partition(" ")
    options = {"criterion": criterion, "absolute": absolute or "per_image"}
    scores = jc.score(model, images, jc.Features(TARGET, CHANNELS), **options)
    found = engine.run(what, *torch_side, CHANNELS)
    for name, theirs in zip(scores.layers, found, strict=True):
        ours = np.swapaxes(np.asarray(scores.values[name]), 1, 2)
        assert theirs.shape == ours.shape
        np.testing.assert_allclose(theirs.numpy(), ours, atol=1e-5 * ours.max(), err_msg=name)


def test_rounds_agree(model, images, torch_side, keep=0.1):
    scores = jc.score(model, images, jc.Features(TARGET, CHANNELS[:2]), criterion="force", keep=keep)
    before = [convolution.weight.detach().clone() for convolution in torch_side[0].convolutions]
    found = reference.force(*torch_side, CHANNELS[:2], keep)
    for name, theirs in zip(scores.layers, found, strict=True):
        ours = np.swapaxes(np.asarray(scores.values[name]), 1, 2)
        np.testing.assert_allclose(theirs.numpy(), ours, atol=1e-5 * ours.max(), err_msg=name)
    for convolution, w in zip(torch_side[0].convolutions, before, strict=True):  # as they were
        np.testing.assert_array_equal(convolution.weight.detach(), w)


def test_curves_agree(model, images, torch_side):
    features = jc.Features(TARGET, [3])
    scores = jc.score(model, images, features, criterion="magnitude")  # the quickest to compile
    keeps = [keep for keep in KEEPS if keep > 0.35]  # with fewer kernels so small a network is constant
    masks = []
    for keep in keeps:
        kept = jc.top_kernels(scores, keep=keep)
        masks.append([torch.from_numpy(np.asarray(kept[name][0]).T.astype(np.float32)) for name in scores.layers])
    ours = jc.curve(model, images, features, scores, keeps)[0]
    assert np.ptp(ours) > 0.01
    for engine in (reference, strong):
        np.testing.assert_allclose(engine.curve(*torch_side, 3, masks).numpy(), ours, atol=1e-4)
    # the reference leaves the weights as they were
    np.testing.assert_array_equal(
        torch_side[0].convolutions[1].weight.detach(), model.state_dict()["features.1.weight"]
    )


def test_engines_run_a_case(model, images, monkeypatch):
    monkeypatch.setattr("benchmarks.engines.images_of", lambda case: (model, images))
    monkeypatch.setitem(__import__("benchmarks.torch_networks").torch_networks.POOLS, "chain", POOLS)
    case = Case("chain", TARGET, "snip", 4, 3, width=5)
    results = {}
    for name, engine in (("jaxcircuits", Ours()), ("reference", Torch(False)), ("strong", Torch(True))):
        engine.prepare(case)
        results[name] = engine.run()
        assert len(results[name][0]) == engine.features_done() == 4
    measure.agree(case, results)
    results["strong"][1][0, 0, 0] += 0.01 * results["strong"][1].max()
    with pytest.raises(AssertionError, match="strong differs by"):
        measure.agree(case, results)


def test_gigaflops_by_hand(model):
    network = model.network((27, 27, 3))
    # positions x kernels: 14 x 14 x (3 x 6), 6 x 6 x (6 x 7), 6 x 6 x (7 x 9), and at the target 3 x 3 x 9 inputs
    first, second, third = 196 * 18, 36 * 42, 36 * 63
    products = {
        "snip": first * 25 + 2 * second * 25 + 2 * third * 9,
        "actgrad": first + second * (1 + 25) + third * (1 + 9),
        "curve": 13 * (first * 25 + second * 25 + third * 9 + 9 * 9 * 9),
    }
    products["force 0.1"] = 11 * products["snip"]
    for what, expected in products.items():
        assert gigaflops(network, Case("chain", TARGET, what, 1, 1)) == pytest.approx(2e-9 * expected)


def test_cases_cover_what_they_should():
    names = [case.name for case in (*QUICK, *FULL, *SCALING)]
    assert len(set(case.name for case in FULL)) == len(FULL)
    assert all(
        any(text in name for name in names)
        for text in ("vgg16 features.28, actgrad", "whole_set", "curve", "force 0.01")
    )
    assert {case.features for case in FULL} >= {1, 16, 64, 256}
    assert {case.features for case in SCALING} == {1, 4, 16, 64, 256, 1024}
    assert len(SCALING[-1].channels) == 1024 and max(SCALING[-1].channels) == 255


def record(what: str, features: int, images: int, milliseconds: float) -> dict:
    return {
        "case": f"alexnet features.10, {what}, F = {features}, N = {images}",
        "model": "alexnet",
        "layer": "features.10",
        "what": what,
        "features": features,
        "images": images,
        "milliseconds": {"jaxcircuits": milliseconds},
        "ratio": {"reference": 5.04, "strong": 2.53},
        "dense_gigaflops": 2.0,
        "gigaflops_a_second": 400.0,
        "share_of_matrix_rate": 2.5,
        "peak_megabytes": {"jaxcircuits": 812.4},
        "result_megabytes": 47.0,
        "compile_seconds": 7.25,
    }


def document(kind: str) -> dict:
    return {
        "kind": kind,
        "hardware": {"cpu": "A CPU", "cores": 2, "devices": ["cpu"], "python": "3.11.7"},
        "versions": {"jax": "0.10.2", "torch": "2.13.0"},
        "matrix_gigaflops_a_second": 160.2,
        "rounds": 3,
        "cases": [record(what, f, n, 5.126) for what in ("snip", "actgrad") for f in (1, 64) for n in (1, 4)],
        "programs": [
            {"program": "start-up", "seconds": {"jaxcircuits": 2.34, "torch": 1.52}, "ratio": {"torch": 0.65}}
        ],
    }


def test_report_writes_table_and_plots(tmp_path):
    readme = "before\n\n<!-- benchmarks -->\nold\n<!-- /benchmarks -->\n\nafter\n"
    (tmp_path / "README.md").write_text(readme)
    (tmp_path / "results").mkdir()
    files = [f"results/{kind}.json" for kind in ("cases", "scaling")]
    for file in files:
        (tmp_path / file).write_text(json.dumps(document(file[8:-5])))
    result = CliRunner().invoke(report.main, ["--root", str(tmp_path), *(str(tmp_path / file) for file in files)])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n\n<!-- benchmarks: results/cases.json results/scaling.json -->\n\n![")
    assert text.endswith("<!-- /benchmarks -->\n\nafter\n") and "old" not in text
    row = "| alexnet features.10, snip, F = 64, N = 4 | 5.13 ms | 5.04 x | 2.53 x | 400 | 250% | 812 MB | 7.2 s |"
    assert text.count(row) == 1
    assert "start-up: 2.3 s (PyTorch, a file of the same weights read: 1.5 s)." in text
    assert (
        text.count("A CPU, 2 cores; matrix products: 160 GFLOP/s; jax 0.10.2, torch 2.13.0; medians of 3 rounds.") == 2
    )
    for name in re.findall(r"!\[[^]]+\]\((.*?)\)", text):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    # the page on speed has the same, seen from its place, and other figures
    (tmp_path / "docs" / "speed.md").write_text(
        "<!-- benchmarks -->\n<!-- /benchmarks -->\n\n<!-- benchmarks: results/made.json results/whole.json -->\n"
        "<!-- /benchmarks -->\n"
    )
    made = {
        "feature": "features.3:8",
        "steps": 128,
        "jaxcircuits": [263.2, 1],
        "lucent": [262, 1],
        "seconds": [2.46, 90],
    }
    (tmp_path / "results/whole.json").write_text((tmp_path / files[0]).read_text())
    (tmp_path / "results/made.json").write_text(json.dumps(document("visualisation") | {"rows": [made]}))
    assert CliRunner().invoke(report.main, ["--root", str(tmp_path)]).exit_code == 0
    speed = (tmp_path / "docs" / "speed.md").read_text()
    assert row in speed and "](cases.png)" in speed and "| features.3:8 | 128 | 2.5 s | 90.0 s | 263 | 262 |" in speed
    assert speed.count(row) == 2 and "](whole.png)" in speed and (tmp_path / "docs" / "whole.png").exists()
    (tmp_path / "docs" / "speed.md").unlink()
    # once the README names them, no files need be given, and nothing changes
    assert report.named(text) == files and report.BLOCK.findall(text)
    shutil.rmtree(tmp_path / "docs")
    assert CliRunner().invoke(report.main, ["--root", str(tmp_path)]).exit_code == 0
    assert (tmp_path / "README.md").read_text() == text
    assert (tmp_path / "docs" / "scaling.png").exists()


@pytest.mark.parametrize("page", report.PAGES)
def test_pages_show_the_figures_of_their_json(page):
    text = (report.ROOT / page).read_text()
    blocks = [found["files"].split() for found in report.BLOCK.finditer(text)]
    assert blocks, f"{page} has no lines '<!-- benchmarks: FILES -->' and '<!-- /benchmarks -->'"
    assert all(file.startswith("benchmarks/results/") for files in blocks for file in files)
    assert report.named(text) == blocks[0] == report.named((report.ROOT / "README.md").read_text())
    assert report.filled(text, blocks[0], page=page) == text
    assert all((report.ROOT / page).parent.joinpath(report.picture(file, page)).exists() for file in blocks[0])
    pictures = re.findall(r"!\[[^]]+\]\(((?!http)[^)]*[.]png)\)", text)
    assert all((report.ROOT / page).parent.joinpath(picture).exists() for picture in pictures)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quick", "--scaling"], "give one of them"),
        (["--only", "resnet"], "no case's name holds 'resnet'"),
        (["--rounds", "0"], "0 is not in the range"),
        (["--out", "figures.txt"], "expected a name that ends in .json"),
        (["--out", "no/such/folder/figures.json"], "there is no such folder"),
        (["--fast"], "No such option"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and message in result.output


@pytest.mark.parametrize(
    ("readme", "arguments", "message"),
    [
        ("nothing", [], "README.md has no lines"),
        ("<!-- benchmarks -->\n<!-- /benchmarks -->", [], "names no files yet"),
        ("<!-- benchmarks: a.json -->\n<!-- /benchmarks -->", [], "there is no file 'a.json'"),
    ],
)
def test_report_refuses(tmp_path, readme, arguments, message):
    (tmp_path / "README.md").write_text(readme)
    result = CliRunner().invoke(report.main, ["--root", str(tmp_path), *arguments])
    assert result.exit_code == 2 and message in result.output
    assert (tmp_path / "README.md").read_text() == readme


@pytest.mark.full
@pytest.mark.slow
def test_command_measures_a_case(tmp_path):
    out = tmp_path / "figures.json"
    result = CliRunner().invoke(main, ["--quick", "--only", "snip, F = 1,", "--rounds", "1", "--out", str(out)])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(out.read_text())["cases"]
    assert found["ratio"].keys() == {"reference", "strong"} and found["gigaflops_a_second"] > 1
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_programs_are_timed():
    names = list(programs.PROGRAMS)[:1]
    for found, name in zip(programs.measure(1, names), names, strict=True):
        assert found["program"] == name and all(0 < seconds < 200 for seconds in found["seconds"].values())


@pytest.mark.parametrize("bits, values", [(10, [1 + 2**-10, -3.0]), (7, [1 + 2**-7, -256.0])])
def test_rounding_to_fewer_bits(bits, values):
    """As a plain twin in float64; what has so few bits stays; bfloat16 as in ml_dtypes."""
    rounded = arithmetic.to_bits(bits)
    np.testing.assert_array_equal(rounded(np.float32(values)), np.float32(values))
    x = (np.random.default_rng(0).standard_normal(1000) * 10.0 ** np.arange(-15, 15).repeat(34)[:1000]).astype(
        np.float32
    )
    step = 2.0 ** (np.floor(np.log2(np.abs(x.astype(np.float64)))) - bits)
    np.testing.assert_array_equal(rounded(x), (np.round(x / step) * step).astype(np.float32))
    halves = np.float32([1 + 2.0 ** -(bits + 1), 1 + 3 * 2.0 ** -(bits + 1)])
    np.testing.assert_array_equal(rounded(halves), np.float32([1, 1 + 2.0 ** -(bits - 1)]))  # to even
    if bits == 7:
        np.testing.assert_array_equal(rounded(x), x.astype(jax.numpy.bfloat16).astype(np.float32))


def test_plain_program_agrees(alexnet):
    """The plain program's scores are jaxcircuits's, in float32 as in float64."""
    images = np.random.default_rng(0).standard_normal((2, 64, 64, 3), np.float32)
    ours = precision.library(alexnet, images, "features.3", (5, 9), "as it comes")
    for kind in ("float64", "float32"):
        found = arithmetic.plain(alexnet, images, "features.3", (5, 9), kind)
        assert found.keys() == ours.keys() == precision.CRITERIA.keys()
        for criterion, scores in found.items():
            for name, score in scores.items():
                assert score.dtype == kind
                np.testing.assert_allclose(ours[criterion][name], score, atol=2e-6 * score.max(), err_msg=name)


def test_masks_compared_by_hand():
    """Four relevant kernels of five, keep .5: the second is exchanged for the third, a tie or not."""
    relevant = {"a": np.array([[[1, 1, 1, 1, 0]]], bool)}
    exact = {"a": np.array([[[4, 2, 1.5, 1, 9.0]]])}
    for third, near in ((1.5, False), (2 - 1e-6, True)):
        exact["a"][0, 0, 2] = third
        other = {"a": np.array([[[4, 1.4, 2.1, 1, 9]]], np.float32)}
        found = precision.compared(exact, other, relevant, keeps=(0.5, 0.25))
        assert not found["equal"] and found["error"] == pytest.approx(max(0.6, 2.1 - third) / 9, rel=1e-6)
        half, quarter = found["masks"]
        assert half == {"keep": 0.5, "kept": 2, "others": 1, "ties": near, "farthest": pytest.approx((2 - third) / 2)}
        assert quarter == {"keep": 0.25, "kept": 1, "others": 0, "ties": 0, "farthest": 0}
    assert precision.compared(exact, exact, relevant)["equal"]


def test_numbers_page_says_what_the_json_says():
    page = (report.ROOT / "docs/numbers.md").read_text()
    assert precision.filled(page) == page and len(precision.BLOCK.findall(page)) == 2
    document = json.loads(precision.RESULTS.read_text())
    for way in document["records"]:
        if way["against"] in precision.WAYS:  # what the page promises: within 1e-5, masks but for ties
            assert way["error"] < 1e-5, way
            assert all(mask["others"] == mask["ties"] for mask in way["masks"]), way
