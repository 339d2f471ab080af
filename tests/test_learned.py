"""Learned masks: views, the gradient against PyTorch's, and circuits that beat their prior."""

import warnings

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxcircuits as jc
from jaxcircuits import training
from jaxcircuits.criteria import learned
from jaxcircuits.data.views import Views
from jaxcircuits.gradients import activations
from tests import twins


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_in_range_reproducible_and_different(channels):
    images = np.random.default_rng(0).uniform(-2, [1, 2, 3][:channels], (3, 20, 30, channels)).astype(np.float32)
    views = Views(images, (17, 13), seed=1)
    block = views.block(4, 6)
    assert block.shape == (6, 17, 13, channels) and block.dtype == np.float32
    assert (block >= images.min((0, 1, 2)) - 1e-5).all() and (block <= images.max((0, 1, 2)) + 1e-5).all()
    np.testing.assert_array_equal(block, Views(images, (17, 13), seed=1).block(4, 6))
    np.testing.assert_array_equal(block[:2], views.block(4, 2))
    others = [views.block(5, 6), Views(images, (17, 13), seed=2).block(4, 6)]
    assert all(np.abs(block - other).reshape(6, -1).max(1).min() > 0.1 for other in others)
    assert len({view.tobytes() for view in block}) == 6


def test_views_of_other_images_are_refused():
    with pytest.raises(jc.InputError, match="5 channels; views are made of images with 1 or 3"):
        Views(np.zeros((2, 8, 8, 5), np.float32), (8, 8), seed=0)


@hypothesis.given(st.integers(1, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_the_way_to_a_smaller_circuit_begins_with_that_to_a_larger(relevant, a, b):
    small, large = sorted(max(1, round(relevant * share)) for share in (a, b))
    ways = [learned.on_the_way(relevant, kept) for kept in (small, large)]
    assert (np.diff(ways[0]) <= 0).all() and (ways[0] >= small).all() and (ways[1] >= large).all()
    np.testing.assert_array_equal(ways[0][: len(ways[1])], ways[1])
    assert len(ways[1]) or learned.START * relevant / large < np.exp(2 / learned.STEPS) + 1e-9


def learned_loss(x, y):
    """The equation of `criteria.learned`, image by image: maps (N, H, W)."""
    r = lambda a, b: torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]  # noqa: E731
    weights = [b.std() for b in y]
    within = sum(w * r(a, b) for w, a, b in zip(weights, x, y, strict=True)) / sum(weights)
    return 1 - (r(x, y) + within) / 2


def test_the_loss_of_single_positions_is_that_of_r():
    x, y = np.random.default_rng(0).standard_normal((2, 6, 4, 5)).astype(np.float32)
    where = np.zeros((6, 4, 5), np.float32)
    where[:, 2, 1] = 1
    expected = 1 - np.corrcoef(x[:, 2, 1], y[:, 2, 1])[0, 1]
    np.testing.assert_allclose(learned.loss(x, y, where), expected, rtol=1e-5)
    whole = learned_loss(torch.from_numpy(x), torch.from_numpy(y))
    for scale in (1, 1e-4):
        np.testing.assert_allclose(learned.loss(scale * x, scale * y, np.ones_like(x)), whole, rtol=1e-5)


@pytest.mark.parametrize("uneven", [False, True])
def test_the_gradient_of_a_mask_is_that_of_a_twin(small, uneven):
    """dloss/dm of a circuit, for kernels in and out of it, by PyTorch's own differentiation; inner channels as they are
    or stronger and weaker."""
    network, images = small.model.network((13, 11, 3)), small.images[:4]
    features = jc.Features("features.3", [4]).resolve(network.layers)
    scores = jc.score(small.model, images, features)
    kept = jc.top_kernels(scores, kernels=60)
    task = training.Task(network, "features.3", scores.layers, None)
    variables, direction = small.model.variables, jnp.asarray(features.matrix(6))
    height, width, inputs = network.layers["features.3"].input_maps
    gain = np.exp(np.random.default_rng(0).standard_normal((4, 2, 3, inputs), np.float32))
    gains = {"features.3": gain} if uneven else {}
    seen = training.Seen(images, gains, training._full(task, variables, direction, jnp.asarray(images), gains)[0])
    masks = {name: mask[0].astype(np.float32) for name, mask in kept.items()}
    found = jax.jit(jax.grad(training._loss), static_argnums=1)(masks, task, variables, direction, seen)

    masks = {name: torch.tensor(np.asarray(kept[name][0].T), dtype=torch.float32) for name in scores.layers}
    masks = {name: mask[..., None, None].requires_grad_() for name, mask in masks.items()}
    weights = {f"{name}.weight": small.torch.get_submodule(name).weight * mask for name, mask in masks.items()}
    outputs = []
    target = small.torch.get_submodule("features.3")
    handles = [target.register_forward_hook(lambda *args: outputs.append(args[2][:, 4]))]
    if uneven:
        stronger = torch.empty(4, inputs, height, width)
        for h in range(height):
            for w in range(width):
                stronger[:, :, h, w] = torch.from_numpy(gain[:, int(h * 2 / height), int(w * 3 / width)])
        handles.append(target.register_forward_pre_hook(lambda _, given: (given[0] * stronger,)))
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2)
    for given in (weights, {}):
        torch.func.functional_call(small.torch, given, (pictures,))
    for handle in handles:
        handle.remove()
    x, y = outputs[0], outputs[1].detach()
    loss = learned_loss(x, y)
    expected = torch.autograd.grad(loss, list(masks.values()))
    for name, gradient in zip(masks, expected, strict=True):
        wanted = gradient[..., 0, 0].numpy().T
        np.testing.assert_allclose(found[name], wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max())
    assert any(np.asarray(g)[~np.asarray(kept[name][0])].any() for name, g in found.items())


@pytest.mark.parametrize("rate", [1, 0.3])
def test_soft_masks_are_those_of_the_equation(rate):
    """By NumPy: as soft as it may be, and hardly softer; a kernel that is not relevant is neither in it nor trained."""
    rng = np.random.default_rng(0)
    logits = {
        name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in (("a", (30, 4)), ("b", (4, 2)))
    }
    relevant = {name: jnp.asarray(rng.random(s.shape) < 0.8) for name, s in logits.items()}
    flat = lambda arrays: np.concatenate([np.asarray(a, float).ravel() for a in arrays.values()])  # noqa: E731
    s, there = flat(logits), flat(relevant) > 0
    ranked = np.sort(s[there])[::-1]
    kept = {name: relevant[name] & (x >= ranked[19]) for name, x in logits.items()}
    masks, slopes = learned.soft(logits, kept, relevant, rate)
    middle = (ranked[19] + ranked[20]) / 2
    m, slope = flat(masks), flat(slopes)
    inside = there & (np.abs(m - 0.5) < 0.49) & (np.abs(m - 0.5) > 1e-3)
    temperatures = (s - middle)[inside] / np.log(m[inside] / (1 - m[inside]))
    temperature = temperatures.mean()
    np.testing.assert_allclose(temperatures, temperature, rtol=1e-3)
    leak = lambda t: (1 / (1 + np.exp(-(ranked[20:] - middle) / t))).sum()  # noqa: E731
    assert leak(temperature) <= learned.LEAK * rate * 20 * 1.001 and leak(1.02 * temperature) > learned.LEAK * rate * 20
    q = 1 / (1 + np.exp(-(s - middle) / 0.5))
    np.testing.assert_allclose(slope, q * (1 - q) * there, rtol=1e-4)
    assert not m[~there].any() and np.array_equal(m > 0.5, flat(kept) > 0)


def test_scores_that_are_all_zero(small):
    """Of a channel without weights: there is nothing to learn, and its neighbour learns."""
    variables = jax.tree.map(np.array, small.model.variables)
    variables["params"]["features.0"]["kernel"][..., 2] = 0
    model = jc.Model(small.model.module, variables, apply_options={"train": False}, input_size=13)
    features = jc.Features("features.0", [2, 3])
    with pytest.warns(UserWarning, match="r is not defined"):
        found = list(jc.extract(model, small.images, features, criterion="learned", keep=0.5, steps=2))
    assert [c.manifest["kept"] for c in found] == [2, 2]
    assert [c.manifest["correlation"] is None for c in found] == [True, False]


def test_a_circuit_of_all_kernels_is_not_soft():
    logits, all_of_them = {"a": jnp.zeros((2, 2))}, {"a": jnp.ones((2, 2), bool)}
    mask, slope = learned.soft(logits, all_of_them, all_of_them)
    assert (mask["a"] == 1).all() and not slope["a"].any()


def test_steps_are_those_of_the_equation():
    """Two steps of logits, by NumPy; kernels that are not relevant stay where they are."""
    rng = np.random.default_rng(0)
    relevant = {"a": np.ones((2, 3), bool), "b": np.array([[True, False]])}
    scores = {name: rng.random(mask.shape).astype(np.float32) * mask for name, mask in relevant.items()}
    state = learned.first(scores, relevant)
    s, a, b = ({n: f(np.asarray(v, float)) for n, v in state.logits.items()} for f in (np.copy, *[np.zeros_like] * 2))
    for t in (1, 2):
        gradient = {name: rng.standard_normal(mask.shape).astype(np.float32) for name, mask in relevant.items()}
        state = learned.step(state, gradient, relevant, 1.5)
        rms = np.sqrt(np.mean(np.concatenate([gradient[name][relevant[name]] ** 2 for name in relevant])))
        for name, mask in relevant.items():
            g = gradient[name] * mask / rms
            a[name], b[name] = 0.9 * a[name] + 0.1 * g, 0.99 * b[name] + 0.01 * g * g
            s[name] -= 0.3 * a[name] / (1 - 0.9**t) / (np.sqrt(b[name] / (1 - 0.99**t)) + 1)
    for name in relevant:
        np.testing.assert_allclose(state.logits[name], s[name], rtol=1e-4, atol=1e-6)
    assert state.logits["b"][0, 1] == 0


def test_gains_are_drawn_for_each_view_part_and_inner_channel(small):
    network = small.model.network((13, 11, 3))
    task = training.Task(network, "features.3", ("features.0", "features.3"), None)
    images, direction = small.images, jnp.eye(6)[:1]
    views = Views(images, (13, 11), seed=2)
    given = task, small.model.variables, views, direction
    seen, other = (training._looked_at(*given, step) for step in (3, 4))
    gain = np.log(seen.gains["features.3"])
    assert seen.gains.keys() == {"features.3"} and gain.shape == (16, 3, 3, network.layers["features.3"].inputs)
    assert abs(gain.mean()) < 0.05 and gain.std() == pytest.approx(0.3, rel=0.1)
    assert len(np.unique(gain)) > 0.99 * gain.size
    assert np.abs(gain - np.log(other.gains["features.3"])).min() > 0
    np.testing.assert_array_equal(gain, np.log(training._looked_at(*given, 3).gains["features.3"]))
    judging = training._looked_at(*given, training.HELD_OUT)
    assert not judging.gains
    plain = small.model.network((13, 11, 3)).run(small.model.variables, judging.images)["features.3"]
    expected = activations(network.layers["features.3"], small.model.variables, plain, direction)
    np.testing.assert_allclose(judging.full, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def trained(small):
    """A learned circuit of each amount, side by side, and SNIP's scores."""
    features = jc.Features("features.3", [4, 1])
    options = {"criterion": "learned", "steps": 20, "seed": 3}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* is constant in the circuit")  # 13 kernels need not lead anywhere
        found = list(jc.extract(small.model, small.images, features, keep=[0.3, 0.1], **options))
    return features, options, {(c.manifest["feature"]["channel"], c.manifest["keep"]): c for c in found}


def test_what_is_learned_depends_on_nothing_but_what_is_asked(small, trained):
    features, options, circuits = trained
    scores = jc.score(small.model, small.images, features[1:], keep=0.1, **options)
    assert (scores.record.steps, scores.record.seed, scores.record.keep) == (20, 3, 0.1)
    for name, mask in jc.top_kernels(scores).items():
        np.testing.assert_array_equal(mask[0], circuits[1, 0.1].masks[name])
    other = jc.score(small.model, small.images, features[1:], keep=0.1, **(options | {"seed": 4}))
    assert float(jc.iou(jc.top_kernels(scores), jc.top_kernels(other))[0][0]) < 1
    assert all(
        (np.asarray(v) >= 0).all() and not np.asarray(v)[~scores.relevant[n]].any() for n, v in scores.values.items()
    )


def test_exactly_as_many_kernels_are_kept(small, trained):
    features, _, circuits = trained
    relevant = jc.masks.count(jc.relevant_kernels(small.model, features, image_shape=(13, 11, 3)))
    for (channel, keep), circuit in circuits.items():
        assert circuit.manifest["kept"] == round(keep * relevant[[4, 1].index(channel)])
        assert circuit.manifest["steps"] == 20 and circuit.manifest["seed"] == 3


def test_learning_pays_on_photographs_that_it_has_not_seen(alexnet):
    features = jc.Features("features.3", [1])
    seen, unseen = (jc.read_images(source, alexnet) for source in ("photos:a", "photos:b"))
    r = {}
    for criterion, options in (("snip", {}), ("learned", {"keep": 0.05, "steps": 10})):
        scores = jc.score(alexnet, seen, features, criterion=criterion, **options)
        r[criterion] = jc.correlation(alexnet, unseen, features, jc.top_kernels(scores, keep=0.05))[0]
    assert r["learned"] > r["snip"] + 0.05, r


def test_training_that_goes_astray_leaves_the_circuit_that_it_began_with(small, monkeypatch):
    features = jc.Features("features.3", [4])
    before = jc.top_kernels(jc.score(small.model, small.images, features), keep=0.2)
    scramble = lambda s: jnp.sin(99 * s)  # noqa: E731
    astray = lambda task, state, *_: state._replace(logits=jax.tree.map(scramble, state.logits))  # noqa: E731
    monkeypatch.setattr(training, "_step", astray)
    after = jc.score(small.model, small.images, features, criterion="learned", keep=0.2, steps=4)
    np.testing.assert_array_equal(jc.iou(jc.top_kernels(after), before)[0], 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "learned depends on how much is kept: give either keep or kernels"),
        ({"schedule": [5, 3]}, "learned has no schedule; expected keep or kernels"),
        ({"keep": 0.1, "granularity": "filter"}, "learned masks are of kernels; filters are not trained"),
        ({"keep": 0.1, "steps": 0}, "steps is 0; expected a whole number of at least 1"),
    ],
)
def test_what_cannot_be_learned(small, options, message):
    with pytest.raises(jc.InputError, match=message):
        jc.score(small.model, small.images, jc.Features("features.3", [4]), criterion="learned", **options)


def test_views_that_are_too_small_for_the_features():
    """Views are smaller than the images, as long as that leaves the features a map."""
    module = nn.Sequential([nn.Conv(6, (3, 3), padding="VALID"), nn.relu, nn.Conv(4, (7, 7), padding="VALID")])
    model = jc.Model(module, twins.random_variables(module, (1, 12, 12, 3)), input_size=12)
    images, features = (
        np.random.default_rng(0).standard_normal((6, 12, 12, 3), np.float32),
        jc.Features("layers_2", [1]),
    )
    snip = jc.top_kernels(jc.score(model, images, features), keep=0.4)
    found = jc.top_kernels(jc.score(model, images, features, criterion="learned", keep=0.4, steps=20))
    assert jc.iou(found, snip)[0] < 1
    assert jc.correlation(model, images, features, found) > jc.correlation(model, images, features, snip)


@pytest.mark.parametrize("criterion", ["force", "learned"])
def test_layers_that_do_not_lead_to_the_feature(criterion):
    class Apart(nn.Module):
        @nn.compact
        def __call__(self, x):
            nn.Conv(2, (3, 3), name="apart")(x)
            return nn.Conv(2, (3, 3), name="last")(x)

    model = jc.Model(Apart(), twins.random_variables(Apart(), (1, 9, 9, 3)), input_size=9)
    with pytest.raises(jc.InputError, match="last:0 has no relevant kernel in the scored layers"):
        jc.score(
            model, np.ones((2, 9, 9, 3), np.float32), jc.Features("last", [0]), criterion=criterion, keep=0.5,
            layers=["apart"],
        )  # fmt: skip
