"""Pearson's r of circuits against NumPy's, over all images and positions."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import jaxcircuits as jc
from jaxcircuits import masked
from jaxcircuits.faithfulness import KEEPS, correlations
from tests import twins

GIVEN = np.array([[0, 1], [2, 4], [1, 1], [0, 0], [2, 3]])
DIRECTIONS = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def scores(small):
    return jc.score(small.model, small.images, jc.Features("features.3", [4, 0]), criterion="random")


def maps(small, masks, features):
    """The features in a network with masks {layer: (O, I)}, before any position is chosen: (F, N, H, W)."""
    outputs = twins.with_kernels(small.torch, masks)(small.images)[features.layer]
    outputs = outputs.reshape(*outputs.shape, *[1] * (4 - outputs.ndim)).numpy()
    layers = small.model.network(small.images.shape[1:]).layers
    matrix = features.resolve(layers).matrix(layers[features.layer].outputs)
    return np.einsum("nohw,fo->fnhw", outputs, matrix)


def looked_at(maps, full, position):
    """The values of one feature that are compared: maps (N, H, W) -> (n,)."""
    n, height, width = maps.shape
    if position is None:
        return maps.ravel()
    if isinstance(position, str):
        rows, columns = np.full(n, height // 2), np.full(n, width // 2)
        if position == "argmax":
            rows, columns = np.unravel_index(full.reshape(n, -1).argmax(1), (height, width))
    else:
        rows, columns = np.broadcast_to(position, (n, 2)).T
    return maps[np.arange(n), rows, columns]


def compare(small, features, masks, **options):
    """r of every feature against that of the network with its mask in PyTorch."""
    found = jc.correlation(small.model, small.images, features, masks, **options)
    full = maps(small, {}, features)
    for f in range(len(full)):
        circuit = maps(small, {name: np.asarray(mask[f]).T for name, mask in masks.items()}, features)[f]
        x, y = (looked_at(a, full[f], features.position) for a in (circuit, full[f]))
        np.testing.assert_allclose(found[f], np.corrcoef(x, y)[0, 1], atol=2e-6)
    assert found.shape == (len(full),) and found.dtype == np.float64
    return found


@pytest.mark.parametrize("position", [None, (1, 2), "middle", "argmax", GIVEN])
def test_r_is_numpys(small, scores, position):
    """Five images in blocks of two: the padding of the last block does not count."""
    features = jc.Features("features.3", [4, 0], position=position)
    r = compare(small, features, jc.top_kernels(scores, keep=0.5), batch=2)
    assert (np.abs(r) < 0.999).all()


def test_directions_and_some_layers(small, scores):
    masks = jc.top_kernels(scores, keep=0.5)
    del masks["features.3"], masks["layer1.conv2"]
    compare(small, jc.Features("features.3", directions=DIRECTIONS), masks)


def test_dense_target(small):
    features = jc.Features("fc2", [1, 2])
    scores = jc.score(small.model, small.images, features, criterion="random", seed=3)
    compare(small, features, jc.top_kernels(scores, keep=0.7))


def test_a_large_mean_does_not_cost_precision(small, scores):
    bias = small.model.variables["params"]["features.3"]["bias"]
    params = small.model.variables["params"]
    params = {**params, "features.3": {**params["features.3"], "bias": bias + 1000}}
    shifted = jc.Model(small.model.module, {**small.model.variables, "params": params}, apply_options={"train": False})
    features, masks = jc.Features("features.3", [4, 0]), jc.top_kernels(scores, keep=0.5)
    expected = jc.correlation(small.model, small.images, features, masks)
    np.testing.assert_allclose(jc.correlation(shifted, small.images, features, masks), expected, atol=1e-3)


def test_everything_kept_is_the_network_itself(small, scores):
    everything = {name: np.ones(mask.shape, bool) for name, mask in scores.relevant.items()}
    features = jc.Features("features.3", [4, 0])
    np.testing.assert_allclose(jc.correlation(small.model, small.images, features, everything), 1, atol=1e-6)
    np.testing.assert_allclose(jc.correlation(small.model, small.images, features, scores.relevant), 1, atol=1e-6)


def test_a_constant_circuit_has_no_r_and_says_so(small, scores):
    features = jc.Features("features.3", [4, 0])
    masks = {name: np.ones(mask.shape, bool) for name, mask in scores.relevant.items()}
    masks["features.3"][1] = False
    with pytest.warns(UserWarning, match="^features.3:0 is constant in the circuit, so that r is not defined$"):
        r = jc.correlation(small.model, small.images, features, masks, batch=2)
    assert r[0] > 0.999 and np.isnan(r[1])
    one = jc.Features("features.3", [4], position=(1, 2))
    masks = {name: mask[:1] for name, mask in masks.items()}
    with pytest.warns(UserWarning, match="^features.3:4@1,2 is constant in the full network"):
        assert np.isnan(jc.correlation(small.model, small.images[:1], one, masks, batch=2))


def test_a_curve_is_one_correlation_after_another(small, scores):
    features, keeps = jc.Features("features.3", [4, 0]), (0.9, 0.7, 0.5)
    curve = jc.curve(small.model, small.images, features, scores, keeps)
    assert curve.shape == (2, 3) and len(KEEPS) == 13
    for k, keep in enumerate(keeps):
        masks = jc.top_kernels(scores, keep=keep)
        # to float64's last digit: how NumPy adds depends on shape and place in memory
        r = jc.correlation(small.model, small.images, features, masks)
        np.testing.assert_allclose(curve[:, k], r, rtol=1e-14)
    of_one = jc.curve(small.model, small.images, features, scores, 0.5)
    np.testing.assert_allclose(of_one, curve[:, 2:], rtol=1e-14)


def test_chunks_and_progress(small, scores, monkeypatch):
    """More features than fit into one call are the same features."""
    features, steps = jc.Features("features.3", [4, 0, 4, 0, 0]), []
    masks = {name: mask[np.array([0, 1, 0, 1, 1])] for name, mask in jc.top_kernels(scores, keep=0.5).items()}
    expected = jc.correlation(small.model, small.images, features, masks, batch=2)
    monkeypatch.setattr("jaxcircuits.moments.CHUNK", 2)
    found = correlations(small.model, small.images, features, [masks, masks], batch=2, progress=steps.append)
    np.testing.assert_allclose(found, np.stack([expected, expected], 1), atol=1e-6)
    assert sum(steps) == 5 * 5


@pytest.mark.parametrize("position", [None, "argmax"])
def test_every_measure_is_that_of_the_maps_in_pytorch(small, scores, position):
    features = jc.Features("features.3", [4, 0], position=position)
    masks = [jc.top_kernels(scores, keep=keep) for keep in (0.9, 0.6)]
    found = jc.evaluate(small.model, small.images, features, masks, batch=2)
    empty = {name: np.zeros(mask.shape, bool) for name, mask in masks[0].items()}
    full = maps(small, {}, features)
    for f in range(2):
        y, nothing, *xs = (
            looked_at(maps(small, {n: np.asarray(m[f]).T for n, m in mask.items()}, features)[f], full[f], position)
            for mask in ({}, empty, *masks)
        )
        for k, x in enumerate(xs):
            error = np.mean((x - y) ** 2)
            expected = np.corrcoef(x, y)[0, 1], error / np.var(y), 1 - error / np.mean((nothing - y) ** 2)
            measures = found.correlation(), found.relative_squared_error(), found.faithfulness()
            np.testing.assert_allclose([m[f, k] for m in measures], expected, rtol=1e-6, atol=1e-5)
            tops = [set(np.argsort(-a.reshape(5, -1).max(1))[:2]) for a in (x, y)]
            assert found.top_image_overlap(2)[f, k] == len(tops[0] & tops[1]) / 2
    assert found.labels == features.labels and not found.constant.any()
    np.testing.assert_allclose(found.cpr([0.9, 0.6]), 1 - found.cmd([0.9, 0.6]), rtol=1e-12)
    np.testing.assert_allclose(found.correlation(), correlations(small.model, small.images, features, masks), atol=1e-6)


def test_what_cannot_be_evaluated(small, scores):
    features, masks = jc.Features("features.3", [4, 0]), jc.top_kernels(scores, keep=0.5)
    some = {name: mask for name, mask in masks.items() if name != "features.0"}
    for wrong, message in (([], "no masks"), ([masks, some], r"\['features.0'\] stand in some of them only")):
        with pytest.raises(jc.InputError, match=message):
            jc.evaluate(small.model, small.images, features, wrong)
    masks = {name: np.ones(mask.shape, bool) for name, mask in masks.items()}
    masks["features.3"][1] = False
    with pytest.warns(UserWarning, match="^features.3:0 is constant in the circuit, so that r is not defined$"):
        found = jc.evaluate(small.model, small.images, features, masks)
    np.testing.assert_array_equal(found.constant, [[False], [True]])
    np.testing.assert_array_equal(np.isnan(found.correlation()), found.constant)
    np.testing.assert_allclose(found.faithfulness()[0], 1, atol=1e-9)


def test_masks_that_do_not_fit(small, scores):
    features, masks = jc.Features("features.3", [4, 0]), jc.top_kernels(scores, keep=0.5)
    for name, mask, message in [
        ("features.3", masks["features.3"][:1], r"has shape \(1, 8, 6\); expected \(2, 8, 6\)"),
        ("features.3", masks["features.3"].transpose(0, 2, 1), r"has shape \(2, 6, 8\); expected \(2, 8, 6\)"),
        ("layer1.conv1", masks["layer1.conv2"], r"has shape \(2, 8, 8\); expected \(2, 4, 8\)"),
        ("features.4", masks["features.3"], "there is no layer 'features.4'"),
    ]:
        with pytest.raises(jc.InputError, match=message):
            jc.correlation(small.model, small.images, features, {**masks, name: mask})
    with pytest.raises(jc.InputError, match="there are 3 positions for 5 images"):
        jc.correlation(small.model, small.images, jc.Features("features.3", [4, 0], position=GIVEN[:3]), masks)


class Wide(nn.Module):
    """What is computed by terms (see `masked`), under nn.jit and nn.remat, with strides, dilation, a skip, no bias."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3), strides=2, name="a")(x))
        y = nn.relu(nn.jit(nn.Conv)(24, (3, 5), kernel_dilation=(1, 2), padding=((1, 1), (4, 4)), name="b")(x))
        y = nn.remat(nn.Conv)(16, (1, 1), use_bias=False, name="c")(y)
        return nn.Conv(5, (3, 3), name="d")(nn.relu(nn.Conv(19, (3, 3), name="e")(x + nn.BatchNorm(True)(y))))


def plainly(monkeypatch, found):
    """The result of a function when every mask is multiplied into the weights."""
    with monkeypatch.context() as patch:
        patch.setattr(masked, "suited", lambda *_: ())
        return found()


def test_circuits_computed_by_terms_are_the_same(monkeypatch):
    """Kernels added to the bias or taken off the full output, in groups or whole: as in the plain masked network."""
    monkeypatch.setattr(masked, "GROUP", 4)
    monkeypatch.setattr(masked, "FEW", 2)
    rng, model = np.random.default_rng(0), jc.Model(Wide(), twins.random_variables(Wide(), (1, 12, 12, 3)))
    images, features = rng.standard_normal((3, 12, 14, 3), np.float32), jc.Features("d", [1, 3])
    shapes = {name: (2, layer.inputs, layer.outputs) for name, layer in model.layers.items()}
    names = [*"abce"]
    assert masked.suited(model.layers, "d", {n: np.ones(shapes[n], bool) for n in names}) == tuple(names)
    ways, signs, original = set(), set(), masked.terms

    def spied(*arguments):
        found = original(*arguments)
        ways.add(int(found.way))
        signs.update(np.unique(found.factors).tolist())
        return found

    monkeypatch.setattr(masked, "terms", spied)
    for intact in ("", "a", "ab", "abce"):
        for density in (0.95, 0.5, 0.1):
            uneven = rng.random((1, 1, 64)) ** 2  # some outputs lose more than others
            masks = {
                n: (rng.random(shapes[n]) > (1 - density) * 3 * uneven[..., : shapes[n][2]]) | (n in intact)
                for n in names
            }
            masks["d"] = rng.random(shapes["d"]) > 0.2
            found = jc.correlation(model, images, features, masks, batch=2)
            plain = plainly(monkeypatch, lambda masks=masks: jc.correlation(model, images, features, masks, batch=2))
            np.testing.assert_allclose(found, plain, atol=1e-5)
    assert ways == {0, 1, 2} and signs == {-1, 0, 1}
    masks = {n: rng.random(shapes[n]).astype(np.float32) for n in names}  # soft masks go the plain way
    assert masked.suited(model.layers, "d", masks) == ()
    assert np.isfinite(jc.correlation(model, images, features, masks)).all()
    masks = {"a": np.full(shapes["a"], 0.5, np.float32), "b": rng.random(shapes["b"]) < 0.9}  # a soft one before
    plain = plainly(monkeypatch, lambda: jc.correlation(model, images, features, masks))
    np.testing.assert_allclose(jc.correlation(model, images, features, masks), plain, atol=1e-5)


@pytest.mark.full
@pytest.mark.slow
def test_alexnets_curve_needs_one_program(alexnet, monkeypatch):
    images = np.random.default_rng(0).standard_normal((2, 64, 64, 3), np.float32)
    features, compiled = jc.Features("features.10", [0, 7]), []
    scores = jc.score(alexnet, images, features)
    one = jc.Features("features.10", [0])
    jc.correlation(alexnet, images, one, {n: m[:1] for n, m in jc.top_kernels(scores, keep=0.5).items()})
    masks = [{n: m[:1] for n, m in jc.top_kernels(scores, keep=keep).items()} for keep in KEEPS]
    others = [{n: m[1:] for n, m in jc.top_kernels(scores, keep=keep).items()} for keep in KEEPS]

    def listen(event, duration_secs, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        r = correlations(alexnet, images, one, masks)
        correlations(alexnet, images, jc.Features("features.10", [7]), others)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled
    plain = plainly(monkeypatch, lambda: correlations(alexnet, images, one, masks))
    np.testing.assert_allclose(r, plain, atol=1e-5)
