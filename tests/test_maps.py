"""Trajectory maps, their page in Chromium, and the commands `subcircuits` and `pictures`."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

import jaxcircuits as jc
from jaxcircuits.cli import main
from jaxcircuits.subfeatures import map_page, trajectories
from tests.test_subfeatures import LAYER, planted, scored  # noqa: F401

NAMES = ["a", "b", "<b onmouseover=alert(1)>"]


@pytest.fixture(scope="module")
def mapped(small, scored):  # noqa: F811
    """Twelve images in three groups, the third with a name that is markup."""
    groups = [NAMES[n % 3] for n in range(12)]
    found = planted(scored, groups)
    values = {"activations": np.linspace(-1, 3, 12)}
    return jc.separate(type(found)(**{**found.__dict__, **values}), groups, nulls=0)


@pytest.fixture(scope="module")
def laid(mapped):
    return trajectories(mapped.of, neighbours=3)


@pytest.fixture(scope="module")
def html(small, mapped, laid):
    return map_page(small.model, np.tile(small.images, (3, 1, 1, 1))[:12], mapped, laid, title="</script><i>a & b")


def test_maps_keep_neighbours_together(mapped, laid):
    """Each group's images lie nearer to each other than to the others; seeded; within -1 and 1."""
    layers = mapped.of.layers
    assert laid.stops == ("all layers", *layers[:-1]) and laid.points.shape == (len(layers), 12, 2)
    np.testing.assert_allclose(np.abs(laid.points).max((1, 2)), 1, rtol=1e-6)
    np.testing.assert_allclose(laid.points.mean(1), 0, atol=1e-5)
    apart = np.linalg.norm(laid.points[0][:, None] - laid.points[0], axis=-1) + 10 * np.eye(12)
    assert (mapped.groups[apart.argmin(1)] == mapped.groups).mean() > 0.8
    np.testing.assert_array_equal(trajectories(mapped.of, neighbours=3).points[:1], laid.points[:1])


def test_points_move_colour_and_tell(opened, html):
    page = opened(html)
    assert page.title() == "</script><i>a & b"
    images = page.locator("#map .image")
    assert images.count() == 12

    def where(n):
        return page.locator(f'[data-image="{n}"]').evaluate("e => e.style.transform")

    before, colour = where(4), page.locator('[data-image="4"] circle').get_attribute("fill")
    page.locator('[data-image="4"]').dispatch_event("pointerenter")
    detail = page.locator("#detail").inner_text()
    assert "activation 0.455" in detail and "group b" in detail
    assert page.locator("#detail img").first.evaluate("e => e.complete && e.naturalWidth") == 96
    assert page.locator("#map .path.chosen").count() == 1
    page.select_option("#stop", "2")
    assert where(4) != before
    page.select_option("#colour", "group")
    assert page.locator('[data-image="4"] circle').get_attribute("fill") != colour
    assert page.locator("#legend").inner_text().split("\n") == [f"{name} (4)" for name in NAMES]
    page.locator("#detail .near button").first.click()
    assert page.locator("#map .image.chosen").get_attribute("data-image") != "4"
    page.check("#pictures")
    assert page.locator("#map image").count() == 12
    page.check("#paths")
    assert page.locator("#map .path").count() == 13
    picture = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 500  # something is drawn


def test_keys(opened, html):
    page = opened(html)
    page.locator("#map").focus()
    for key, chosen in (("n", "0"), ("n", "1"), ("p", "0"), ("p", "11")):
        page.keyboard.press(key)
        assert page.locator("#map .image.chosen").get_attribute("data-image") == chosen
    for key, stop in (("ArrowRight", "1"), ("ArrowRight", "2"), ("ArrowLeft", "1")):
        page.keyboard.press(key)
        assert page.locator("#stop").input_value() == stop


def test_maps_of_too_few_images(scored):  # noqa: F811
    few = planted(scored, ["a", "b", "c"])
    with pytest.raises(jc.InputError, match="4 images or more; got 3"):
        trajectories(few)
    with pytest.raises(jc.InputError, match="neighbours is 1"):
        trajectories(planted(scored, list("abcd")), neighbours=1)


def test_without_umap(monkeypatch, mapped):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(jc.InputError, match=r"pip install 'jaxcircuits\[maps\]'"):
        trajectories(mapped.of)


@pytest.fixture
def run(small, tmp_path, monkeypatch):
    """The command line with the small network for every model; what it says: stdout, or stderr's last line."""
    from click.testing import CliRunner

    monkeypatch.setattr("jaxcircuits.cli.common.load", lambda *args, **options: small.model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    for n in range(6):
        pixels = np.random.default_rng(n).integers(0, 256, (13, 13, 3), np.uint8)
        folder = tmp_path / "set" / ("one" if n % 2 else "two")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{n}.png")

    def run(*arguments, code=0):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == code, result.output
        return result.stdout if code == 0 else result.stderr.strip().splitlines()[-1]

    return run


def test_subcircuits(run, small, tmp_path):
    """Circuits by folder are those of the folders' images; clusters and the map; nothing is overwritten."""
    options = ("--images", "set", "--keep", "0.3", "--nulls", "9", "--granularity", "filter", "--json")
    said = json.loads(run("subcircuits", "small", f"{LAYER}:2", *options, "--neighbours", "3"))
    assert said["groups"] == ["one", "two"] and 0.1 <= said["p"] <= 1 and len(said["nulls"]) == 9
    page = tmp_path / said["map"]
    assert page.read_text().startswith("<!doctype html>") and page.name == f"{LAYER}_2@argmax.map.html"
    images = jc.read_images("set", small.model, resize="crop")
    block = np.concatenate(list(images))
    features = jc.Features(LAYER, channels=[2], position="argmax")
    for g, found in enumerate(said["circuits"]):
        circuit = jc.Circuit.load(found["circuit"])
        rows = [n for n, name in enumerate(images.names) if name.startswith(said["groups"][g])]
        assert circuit.manifest["group"] == {"label": said["groups"][g], "images": rows}
        scores = jc.score(small.model, block[rows], features, granularity="filter", batch=1)
        masks = jc.masks_at(jc.top_kernels(scores, keep=0.3), "kernel", relevant=scores.relevant)
        for name, mask in circuit.masks.items():
            np.testing.assert_array_equal(mask, masks[name][0])
    refused = run("subcircuits", "small", f"{LAYER}:2", *options, "--no-map", "--criterion", "actgrad")
    assert json.loads(refused)["circuits"][0]["criterion"] == "actgrad"  # another name
    other = (f"{LAYER}:2", "--images", "set/one", *options[2:], "--no-map", "--groups", "by-folder")
    assert "map" not in json.loads(run("subcircuits", "small", *other))
    clusters = json.loads(run("subcircuits", "small", f"{LAYER}:2", *options, "--no-map", "--groups", "cluster:2"))
    assert clusters["groups"] == ["cluster-1", "cluster-2"] and -1 <= clusters["silhouette"] <= 1
    sizes = [len(c["group"]["images"]) for c in clusters["circuits"]]
    assert sum(sizes) == 6 and sizes[0] >= sizes[1]
    text = run("subcircuits", "small", f"{LAYER}:2", *options[:-1], "--no-map", "--groups", "each")
    assert "one_1.png" not in text and "one/1.png" in text and "6 circuits in" in text


def test_pictures(run, small, tmp_path):
    said = json.loads(run("pictures", "small", f"{LAYER}:2-3", "--images", "set", "--steps", "2", "--json"))["features"]
    assert [row["feature"] for row in said] == [f"{LAYER}:2", f"{LAYER}:3"]
    made, patches = (np.asarray(Image.open(said[0][what])) for what in ("picture", "patches"))
    assert made.shape[0] >= 96 and patches.shape[0] > 2 * 96
    found = jc.top_patches(small.model, jc.read_images("set", small.model), jc.Features(LAYER, channels=[2]))
    assert said[0]["images"] == list(found.names[0])
    np.testing.assert_allclose(said[0]["top"], found.values[0], rtol=1e-5)
    assert "2 pictures in" in run("pictures", "small", f"{LAYER}:2-3", "--images", "set", "--steps", "0")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("subcircuits", "small", f"{LAYER}:0-1"), "are 2 features; expected one"),
        (("subcircuits", "small", f"{LAYER}:0", "--groups", "cluster:0"), "expected by-folder, each or cluster:K"),
        (("subcircuits", "small", f"{LAYER}:0", "--groups", "cluster:x"), "expected by-folder, each or cluster:K"),
        (("subcircuits", "small", f"{LAYER}:0", "--groups", "cluster:9", "--images", "set"), "only 6 images"),
        (("subcircuits", "small", f"{LAYER}:0", "--keep", "0.1", "--kernels", "3"), "either --keep or --kernels"),
        (("pictures", "small", f"{LAYER}:0", "--steps", "0", "--count", "0"), "nothing to draw"),
        (("pictures", "small", f"{LAYER}:0", "--circuit", "none.safetensors"), "cannot be read"),
    ],
)
def test_bad_input(run, arguments, words, tmp_path):
    assert words in run(*arguments, code=2)
    assert not (tmp_path / "circuits").exists()
