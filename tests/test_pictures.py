"""Pictures of features: the parametrisation and the views against NumPy, top patches against brute force, and what
gradient ascent reaches."""

import jax
import numpy as np
import pytest
import torch

import jaxcircuits as jc
from jaxcircuits.pictures import fourier, sheet, top_patches, transforms, visualise
from tests import twins

LAYER = "features.3"


@pytest.mark.parametrize("height, width", [(6, 8), (7, 5)])
def test_a_picture_is_its_spectrum(height, width):
    """By a sum over all frequencies, in double precision; the colours are the square root of their covariance."""
    spectrum = np.random.default_rng(0).standard_normal((2, *fourier.spectrum_shape(height, width)), np.float32)
    z = spectrum[:, 0] + 1j * spectrum[:, 1]
    y = np.zeros((2, height, width, 3))
    for m, n in np.ndindex(height, width):
        for k, l in np.ndindex(height, width // 2 + 1):
            down, right = min(k, height - k) / height, l / width
            amplitude = 1 / max(np.hypot(down, right), 1 / max(height, width))
            twice = 1 if l == 0 or 2 * l == width else 2  # the other half of the spectrum
            wave = np.exp(2j * np.pi * (k * m / height + l * n / width))
            y[:, m, n] += twice * amplitude * (z[:, k, l] * wave).real
    y /= 4 * np.sqrt(height * width)
    colours = fourier._AXES * np.sqrt(fourier._VARIANCES / 0.2175)
    expected = 1 / (1 + np.exp(-(y @ colours.T)))
    np.testing.assert_allclose(jax.jit(fourier.decode, static_argnums=1)(spectrum, width), expected, atol=2e-6)


def test_views_are_bilinear():
    """Pixel by pixel; a view that does nothing cuts out the middle."""
    canvas, look = (
        np.random.default_rng(0).random((2, 11, 11, 3), np.float32),
        jax.jit(transforms.look, static_argnums=2),
    )
    np.testing.assert_allclose(look(canvas, transforms.STILL, 5), canvas[:, 3:8, 3:8], atol=1e-6)
    view = transforms.View(0.3, 1.2, 1.7, -3.4)
    expected = np.zeros((2, 6, 6, 3))
    for i, j in np.ndindex(6, 6):
        y, x = (i - 2.5) / 1.2, (j - 2.5) / 1.2
        row, column = (
            np.clip(5 + place, 0, 10)
            for place in (np.cos(0.3) * y - np.sin(0.3) * x + 1.7, np.sin(0.3) * y + np.cos(0.3) * x - 3.4)
        )
        for a, b in np.ndindex(11, 11):
            expected[:, i, j] += max(0, 1 - abs(row - a)) * max(0, 1 - abs(column - b)) * canvas[:, a, b]
    np.testing.assert_allclose(look(canvas, view, 6), expected, atol=1e-5)


def test_views_are_seeded_and_stay_on_the_canvas():
    views = np.array([transforms.draw(3, step, 40) for step in range(200)])
    np.testing.assert_array_equal(views[7], transforms.draw(3, 7, 40))
    assert (transforms.draw(4, 7, 40) != views[7]).all()
    low, high = views.min(0), views.max(0)
    np.testing.assert_allclose(low, [-np.deg2rad(10), 1 / 1.1, -2, -2], rtol=0.05)
    np.testing.assert_allclose(high, [np.deg2rad(10), 1.1, 2, 2], rtol=0.05)
    assert transforms.margin(40) >= 2 + 20 * 0.1


def brute_force(small, images, masks=None):
    """The maps (N, O, H, W) of the layer, by PyTorch."""
    with torch.no_grad():
        run = twins.with_kernels(small.torch, {name: mask.T for name, mask in (masks or {}).items()})
        return run(images)[LAYER].numpy()


def test_patches_by_brute_force(small):
    images = np.concatenate([small.images, small.images[1:2], small.images[:1]])  # ties: the earlier image
    features = jc.Features(LAYER, channels=[4, 1])
    found = top_patches(small.model, images, features, count=4, batch=2)
    maps, field = brute_force(small, images), jc.receptive_fields(small.model, image_shape=images.shape[1:])[LAYER]
    pixels = np.clip(np.round(255 * (images * np.float32(small.model.std) + np.float32(small.model.mean))), 0, 255)
    for f, channel in enumerate([4, 1]):
        best = maps[:, channel].reshape(len(images), -1)
        order = sorted(range(len(images)), key=lambda n: (-np.round(best[n].max(), 4), n))[:4]
        assert found.images[f].tolist() == order
        assert found.names[f] == tuple(map(str, order))
        np.testing.assert_allclose(found.values[f], best[order].max(1), atol=1e-5)
        for k, n in enumerate(order):
            h, w = np.unravel_index(best[n].argmax(), maps.shape[2:])
            assert found.positions[f, k].tolist() == [h, w]
            rows, columns = field.box(h, w)
            patch, seen = found.pictures[f, k], pixels[n, rows, columns]
            assert patch.shape[:2] == field.size
            inside = patch[
                slice(-seen.shape[0], None) if rows.start == 0 else slice(seen.shape[0]),
                slice(-seen.shape[1], None) if columns.start == 0 else slice(seen.shape[1]),
            ]
            np.testing.assert_allclose(inside, seen)
            assert (patch == 128).sum() >= patch.size - seen.size


def test_patches_at_a_position_and_in_circuits(small):
    rng = np.random.default_rng(0)
    masks = {name: rng.random((layer.inputs, layer.outputs)) < 0.6 for name, layer in small.model.layers.items()}
    masks = {name: mask for name, mask in masks.items() if not name.startswith("fc")}
    features = jc.Features(LAYER, channels=[0, 5], position=(1, 2))
    shared = top_patches(small.model, small.images, features, masks=masks)
    maps = brute_force(small, small.images, masks)
    expected = -np.sort(-maps[:, [0, 5], 1, 2], axis=0).T
    np.testing.assert_allclose(shared.values, expected, atol=1e-5)
    assert (shared.positions == (1, 2)).all()
    each = {name: np.stack([mask, np.ones_like(mask)]) for name, mask in masks.items()}
    own = top_patches(small.model, small.images, features, masks=each)
    np.testing.assert_allclose(own.values[0], expected[0], atol=1e-5)
    whole = brute_force(small, small.images)
    full = whole[:, 5, 1, 2]
    np.testing.assert_allclose(own.values[1], -np.sort(-full), atol=1e-5)
    peaks = jc.Features(LAYER, channels=[0, 5], position="argmax")  # in the full network, whatever the circuit
    best = whole[:, [0, 5]].reshape(len(whole), 2, -1).argmax(-1)[..., None]
    there = np.take_along_axis(maps[:, [0, 5]].reshape(len(whole), 2, -1), best, -1)[..., 0]
    found = top_patches(small.model, small.images, peaks, masks=masks)
    np.testing.assert_allclose(found.values, -np.sort(-there, axis=0).T, atol=1e-5)


def test_offsets_are_added_in_circuits(small):
    """An offset at the feature's own layer moves its values by as much."""
    features, layer = jc.Features(LAYER, channels=[0, 5]), small.model.layers[LAYER]
    mask = {LAYER: np.ones((layer.inputs, layer.outputs), bool)}
    offsets = {LAYER: np.arange(layer.outputs, dtype=np.float32)}
    plain = top_patches(small.model, small.images, features, masks=mask)
    moved = top_patches(small.model, small.images, features, masks=mask, offsets=offsets)
    np.testing.assert_allclose(moved.values - plain.values, np.array([[0], [5]]) + np.zeros((2, 5)), atol=1e-5)


@pytest.mark.parametrize("objective", ["middle", "mean"])
def test_pictures_drive_their_features(small, objective):
    """The reported value is the feature's on the picture; seeded; whatever else is in the chunk."""
    features = jc.Features(LAYER, channels=[2, 0, 3])
    options = {"objective": objective, "steps": 12, "crop": False}
    found = visualise(small.model, features, chunk=2, **options)
    assert found.labels == ("features.3:2", "features.3:0", "features.3:3")
    assert (found.values > found.start + 0.1).all()
    alone = visualise(small.model, features[1:2], chunk=1, **options)
    np.testing.assert_allclose(alone.values, found.values[1:2], rtol=1e-3)
    assert np.abs(alone.pictures.astype(int) - found.pictures[1:2]).max() <= 1
    other = visualise(small.model, features[1:2], seed=1, **options)
    assert np.abs(other.pictures.astype(int) - alone.pictures).max() > 30
    images = (found.pictures / np.float32(255) - np.float32(small.model.mean)) / np.float32(small.model.std)
    maps = brute_force(small, images.astype(np.float32))
    own = maps[np.arange(3), [2, 0, 3]]
    middle = own[:, own.shape[1] // 2, own.shape[2] // 2] if objective == "middle" else own.mean((1, 2))
    np.testing.assert_allclose(middle, found.values, atol=0.05)


def test_positions_do_not_matter_and_progress_is_of_features(small):
    done = []
    options = {"steps": 2, "chunk": 2, "crop": False}
    plain = visualise(small.model, jc.Features(LAYER, [1, 2, 0]), progress=done.append, **options)
    placed = visualise(small.model, jc.Features(LAYER, [1, 2, 0], position="middle"), **options)
    np.testing.assert_array_equal(plain.pictures, placed.pictures)
    assert sum(done) == 2 * 3


def test_pictures_of_circuits(small):
    """With one mask for all features, and with one for each: an empty circuit cannot be driven."""
    layers = [name for name in small.model.layers if not name.startswith("fc")]
    shapes = {name: (small.model.layers[name].inputs, small.model.layers[name].outputs) for name in layers}
    full, empty = ({name: np.full(shape, keep) for name, shape in shapes.items()} for keep in (True, False))
    features = jc.Features(LAYER, channels=[2, 0])
    plain = visualise(small.model, features, steps=3)
    shared = visualise(small.model, features, steps=3, masks=full)
    np.testing.assert_allclose(shared.values, plain.values, rtol=1e-5)
    each = {name: np.stack([full[name], empty[name]]) for name in layers}
    own = visualise(small.model, features, steps=3, masks=each)
    np.testing.assert_allclose(own.values[0], plain.values[0], rtol=1e-3)
    bias = small.torch.get_submodule(LAYER).bias[0].item()
    np.testing.assert_allclose([own.values[1], own.start[1]], bias, atol=1e-6)


def test_features_without_a_gradient(small):
    masks = {"features.3": np.ones((8, 6), bool)}
    masks["features.3"][:, 1] = False
    found = visualise(small.model, jc.Features("features.3", [1, 2]), masks=masks, steps=2)
    assert found.unmoved.tolist() == [True, False]
    assert np.ptp(found.pictures[0]) < 16 < np.ptp(found.pictures[1])


@pytest.mark.slow
def test_alexnets_pictures(alexnet):
    """Cut to the receptive field, and far above what any photograph reaches."""
    features = jc.Features("features.6", channels=[56, 100])
    found = visualise(alexnet, features, steps=24)
    patches = top_patches(alexnet, jc.read_images("photos:a", alexnet), features, count=3)
    assert found.pictures.shape == (2, 99, 99, 3)
    assert patches.pictures.shape == (2, 3, 99, 99, 3)
    assert (found.values > 1.5 * patches.values[:, 0]).all()
    assert (np.diff(patches.values) <= 0).all()


def test_a_sheet():
    pictures = np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3)
    whole = sheet(pictures, columns=2, gap=1, scale=2)
    assert whole.shape == (9, 9, 3)
    np.testing.assert_array_equal(whole[5:9:2, 0:4:2], pictures[2])
    assert (whole[4] == 255).all() and (whole[5:, 5:] == 255).all()
    with pytest.raises(jc.InputError, match="there are no pictures"):
        sheet(pictures[:0])


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda m, x, f: visualise(m, f, objective="sum"), "unknown objective 'sum'"),
        (lambda m, x, f: visualise(m, f, steps=0), "steps is 0"),
        (lambda m, x, f: visualise(m, f, masks={LAYER: np.ones((4, 8, 6), bool)}), "there are 4 masks"),
        (lambda m, x, f: visualise(m, f, masks={LAYER: np.ones((8, 5), bool)}), "expected"),
        (lambda m, x, f: visualise(m, f, masks={LAYER: np.ones(6, bool)}), "masks are"),
        (lambda m, x, f: visualise(m, f, offsets={LAYER: np.ones(6)}), "fit no mask"),
        (lambda m, x, f: top_patches(m, x, f, count=0), "count is 0"),
        (lambda m, x, f: top_patches(m, x[..., :1], f), "1 channels"),
        (lambda m, x, f: top_patches(m, x, jc.Features("features.9")), "there is no layer"),
    ],
)
def test_bad_input(small, call, words):
    with pytest.raises(jc.InputError, match=words):
        call(small.model, small.images, jc.Features(LAYER, channels=[0]))
