"""Products on the support of gradients against dense ones, and the rule that chooses between them."""

import dataclasses
import warnings

import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax import lax

import jaxcircuits as jc
from jaxcircuits import chunks, passes, plans, scoring, sparse
from jaxcircuits.chunks import evenly
from jaxcircuits.layers import Layer
from tests.test_criteria import assert_close
from tests.twins import random_variables

SOME = [
    ("features.3", "snip", "per_image"),
    ("layer1.conv2", "snip", "whole_set"),
    ("layer1.conv2", "actgrad", "per_image"),
]


def layer_of(height, width, inputs, outputs, window, strides, padding, dilation) -> Layer:
    spans = [(w - 1) * d + 1 for w, d in zip(window, dilation, strict=True)]
    sizes = zip((height, width), padding, spans, strides, strict=True)
    positions = [(size + sum(pad) - span) // stride + 1 for size, pad, span, stride in sizes]
    shapes = (height, width, inputs), (*positions, outputs)
    return Layer("c", ("c",), "conv", window, strides, padding, dilation, 1, inputs, outputs, *shapes)


@st.composite
def layers(draw):
    pair = lambda low, high: draw(st.tuples(st.integers(low, high), st.integers(low, high)))  # noqa: E731
    window, strides, dilation = pair(1, 3), pair(1, 3), pair(1, 2)
    padding = (pair(0, 2), pair(0, 2))
    height, width = pair(5, 9)
    return layer_of(height, width, draw(st.integers(1, 3)), draw(st.integers(1, 4)), window, strides, padding, dilation)


@settings(max_examples=3)
@given(layer=layers(), density=st.sampled_from([0.0, 0.2, 1.0]), seed=st.integers(0, 99))
def test_input_gradients_are_the_transposed_convolutions(layer, density, seed):
    rng = np.random.default_rng(seed)
    images, features = 2, 3
    on = rng.random((images, np.prod(layer.positions), layer.outputs)) < density
    g = (rng.standard_normal((features, *on.shape)) * on).astype(np.float32)
    kernel = rng.standard_normal((*layer.window, layer.inputs, layer.outputs)).astype(np.float32)

    def convolution(x):
        numbers = ("NHWC", "HWIO", "NHWC")
        options = {"rhs_dilation": layer.dilation, "dimension_numbers": numbers}
        return lax.conv_general_dilated(x, kernel, layer.strides, layer.padding, **options)

    _, pullback = jax.vjp(convolution, jnp.zeros((images, *layer.input_maps)))
    expected = np.stack([pullback(jnp.asarray(one.reshape(images, *layer.output_shape)))[0] for one in g])
    found = jax.jit(sparse.input_gradients, static_argnums=0)(layer, kernel, on, g)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("longest", [128, 24])
@pytest.mark.parametrize("together", [True, False])
def test_products_by_output_channel(monkeypatch, longest, together):
    """With lists of every length from none to all, and such as are cut into pieces."""
    monkeypatch.setattr(sparse, "LONGEST", longest)
    rng = np.random.default_rng(0)
    on = rng.random((3, 70, 7)) < np.linspace(0, 1, 7)
    g = (rng.standard_normal((4, *on.shape)) * on).astype(np.float32)
    seen = rng.standard_normal((3, 70, 5)).astype(np.float32)
    start = rng.standard_normal((7, 5, 4)).astype(np.float32)
    flat = jnp.asarray(seen.reshape(-1, 5))

    @jax.jit
    def add(*arrays):
        return sparse.add_by_output(
            *arrays, lambda places, _: flat[places], finish=lambda product, o: jnp.abs(product), together=together
        )

    found = add(start, on, g)
    each = np.einsum("fnpo,npj->nojf", g, seen)
    expected = start + (np.abs(each.sum(0)) if together else np.abs(each).sum(0))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=30)
@given(st.lists(st.lists(st.booleans(), min_size=130, max_size=130), min_size=1, max_size=3))
def test_lists(rows):
    on, compiled = np.stack([np.array(rows), ~np.array(rows)]), jax.jit(sparse.lists, static_argnums=1)
    for axis in (1, 2):
        columns, counts = compiled(on if axis == 2 else on.swapaxes(1, 2), axis)
        for row, found, number in zip(np.concatenate(on), np.asarray(columns), counts, strict=True):
            assert found[:number].tolist() == np.flatnonzero(row).tolist()


@pytest.fixture
def few_lengths(monkeypatch):
    """Less to compile."""
    monkeypatch.setattr(sparse, "RATIO", 8.0)


def both_ways(monkeypatch, model, images, features, **options):
    with monkeypatch.context() as patch:
        patch.setattr(plans, "SPARSE", 2)
        patch.setattr(plans, "FEW", 0)
        fast = jc.score(model, images, features, **options)
    with monkeypatch.context() as patch:
        patch.setattr(plans, "SPARSE", 0)
        plain = jc.score(model, images, features, **options)
    assert (fast.record.sparse, plain.record.sparse) == (True, False)
    return fast, plain


@pytest.mark.parametrize("layer, criterion, absolute", SOME)
@pytest.mark.usefixtures("few_lengths")
def test_scores_on_the_support_are_the_dense_ones(small, monkeypatch, layer, criterion, absolute):
    """Through strides, pooling, a grouped convolution, BatchNorm and a skip; the last block is padded."""
    options = {"criterion": criterion, "absolute": absolute, "batch": 2}
    outputs = small.model.layers[layer].outputs
    features = jc.Features(layer, directions=np.random.default_rng(3).standard_normal((9, outputs)))
    fast, plain = both_ways(monkeypatch, small.model, small.images, features, **options)
    for name in fast.layers:
        assert_close(fast.values[name], np.asarray(plain.values[name]), 1e-5)


class Wrapped(nn.Module):
    """Convolutions under nn.jit and nn.remat."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.jit(nn.Conv)(5, (3, 3), name="first")(x))
        x = nn.relu(nn.remat(nn.Conv)(6, (3, 3), name="second")(x))
        return nn.Conv(9, (1, 1), name="third")(x)


@pytest.mark.usefixtures("few_lengths")
def test_under_jit_and_remat(monkeypatch, small):
    model = jc.Model(Wrapped(), random_variables(Wrapped(), (1, 13, 11, 3)), input_size=13)
    fast, plain = both_ways(monkeypatch, model, small.images[:2], jc.Features("third", range(9)))
    for name in fast.layers:
        assert_close(fast.values[name], np.asarray(plain.values[name]), 1e-5)


class Smooth(nn.Module):
    """No gradient is zero here."""

    @nn.compact
    def __call__(self, x):
        return nn.Conv(9, (1, 1), name="last")(nn.gelu(nn.Conv(5, (3, 3), name="first")(x)))


@pytest.mark.usefixtures("few_lengths")
def test_the_rule(small):
    """On the support where gradients are mostly zero, for many features; recorded."""
    few, many = (
        jc.score(small.model, small.images[:1], jc.Features("layer1.conv1", np.arange(n) % 8))
        for n in (plans.FEW, plans.FEW + 1)
    )
    model = jc.Model(Smooth(), random_variables(Smooth(), (1, 13, 11, 3)), input_size=13)
    smooth = jc.score(model, small.images[:1], jc.Features("last", np.arange(plans.FEW + 1) % 9))
    assert (few.record.sparse, many.record.sparse, smooth.record.sparse) == (False, True, False)


def planned(monkeypatch, model, images, features, **options):
    """What was compiled: the plan and the sizes of the last program."""
    plans, program = [], passes.program
    with monkeypatch.context() as patch:
        patch.setattr(passes, "program", lambda plan, v, size: plans.append((plan, size)) or program(plan, v, size))
        jc.score(model, images, features, **options)
    return plans[-1]


@pytest.mark.usefixtures("few_lengths")
def test_all_layers_or_none(small, monkeypatch):
    """By the share of all products that is left, not of each layer's."""
    model = jc.Model(Wrapped(), random_variables(Wrapped(), (1, 13, 11, 3)), input_size=13)
    features, images = jc.Features("third", range(9)), small.images[:2]
    network = model.network(images.shape[1:])
    found = plans.supports(network, model.variables, "third", jnp.asarray(images[:1]))
    left = (3 * 5 * float(found["first"].mean()) + 5 * 6 * float(found["second"].mean())) / (3 * 5 + 5 * 6)
    monkeypatch.setattr(plans, "FEW", 8)
    for share, sparse_ones in ((left - 0.01, ()), (left + 0.01, ("first", "second"))):
        monkeypatch.setattr(plans, "SPARSE", share)
        assert planned(monkeypatch, model, images, features)[0].sparse == sparse_ones


@pytest.mark.usefixtures("few_lengths")
def test_large_layers(small, monkeypatch):
    """Many features on their support, and else in calls that a few at a time go into, unless they share what is made
    for all."""
    model, images = small.model, small.images[:1]
    few, many = (jc.Features("layer1.conv1", np.arange(n) % 8) for n in (plans.MANY - 1, plans.MANY))
    sizes = lambda *asked, **more: planned(monkeypatch, model, images, *asked, **more)[1].features  # noqa: E731
    monkeypatch.setattr(chunks, "cores", lambda: 1)
    assert sizes(few) == plans.MANY - 1
    monkeypatch.setattr(plans, "LARGE", 0)
    assert planned(monkeypatch, model, images, many)[0].sparse and sizes(many) == plans.MANY
    assert not planned(monkeypatch, model, images, few)[0].sparse and sizes(few) == 2 * plans.FEW
    monkeypatch.setattr(chunks, "cores", lambda: 2)  # which divide the features of one image
    assert not planned(monkeypatch, model, images, many)[0].sparse and sizes(many) == 2 * plans.FEW
    monkeypatch.setattr(chunks, "cores", lambda: 1)
    assert sizes(few, criterion="actgrad") == sizes(few, chunk=plans.MANY - 1) == plans.MANY - 1


@pytest.mark.parametrize(
    ("how", "features", "chunk", "each"),
    [
        (("snip", "per_image"), 7, None, 3), (("snip", "per_image"), 6, 6, 3), (("snip", "per_image"), 5, 5, 5),
        (("snip", "whole_set"), 7, None, 3), (("actgrad", "per_image"), 7, None, 3),
    ],
)  # fmt: skip
def test_few_features_at_a_time(small, monkeypatch, how, features, chunk, each):
    """7 in a call that is filled up; those of a call that cannot be divided are together."""
    asked = small.model, small.images[:3], jc.Features("layer1.conv1", range(features))
    options = {"criterion": how[0], "absolute": how[1], "chunk": chunk, "batch": 2}
    expected = jc.score(*asked, **options)
    for name, value in {"LARGE": 0, "FEW": 3, "MANY": 3, "SPARSE": 0}.items():
        monkeypatch.setattr(plans, name, value)
    together, pulled = set(), passes.pullback

    def spied(*rest, **more):
        back = pulled(*rest, **more)
        return back._replace(of=lambda directions: together.add(len(directions)) or back.of(directions))

    monkeypatch.setattr(passes, "pullback", spied)
    found = jc.score(dataclasses.replace(small.model), *asked[1:], **options)  # of which nothing is compiled
    assert together == ({each} if jax.default_backend() == "cpu" else {features}) and not found.record.sparse
    for name in found.layers:
        assert_close(found.values[name], np.asarray(expected.values[name]), 1e-5)


@pytest.mark.usefixtures("few_lengths")
def test_some_layers_on_their_support(small, monkeypatch):
    """Where others cannot be."""
    model = jc.Model(Wrapped(), random_variables(Wrapped(), (1, 13, 11, 3)), input_size=13)
    features, images = jc.Features("third", range(9)), small.images[:2]
    _, plain = both_ways(monkeypatch, model, images, features)
    for one in ("first", "second"):
        monkeypatch.setattr(scoring, "sparse_layers", lambda *_, one=one: (one,))
        assert planned(monkeypatch, model, images, features)[0].sparse == (one,)
        some = jc.score(model, images, features)
        for name in some.layers:
            assert_close(some.values[name], np.asarray(plain.values[name]), 1e-5)


@pytest.mark.parametrize("total, most, size", [(64, 41, 32), (1, 9, 1), (8, 8, 8), (9, 4, 3), (100, 64, 50)])
def test_chunks_are_alike(total, most, size):
    assert evenly(total, most) == size


@pytest.mark.usefixtures("few_lengths")
def test_out_of_memory_halves_the_chunk(small, monkeypatch):
    features = jc.Features("layer1.conv1", range(8))
    expected = jc.score(small.model, small.images, features, batch=5)
    program = passes.program

    def limited(plan, variables, size):
        if size.features > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return program(plan, variables, size)

    monkeypatch.setattr(passes, "program", limited)
    with pytest.warns(UserWarning, match="out of memory: going on with [42] features"):
        found = jc.score(small.model, small.images, features, chunk=8, batch=5)
    for name in found.layers:
        assert_close(found.values[name], np.asarray(expected.values[name]), 1e-5)


def test_what_does_not_fit_at_all_is_an_error(small, monkeypatch):
    def never(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")

    monkeypatch.setattr(passes, "program", never)
    with warnings.catch_warnings(), pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        warnings.simplefilter("ignore")
        jc.score(small.model, small.images, jc.Features("features.3", [0, 1]), chunk=2)


@pytest.mark.usefixtures("few_lengths")
def test_a_compiled_step_that_is_too_large_is_halved(small, monkeypatch):
    """By the program's own figures."""
    features = jc.Features("layer1.conv1", range(8))
    sizes = []
    program = passes.program

    def noted(plan, variables, size):
        found = program(plan, variables, size)
        sizes.append((size.features, found.bytes))
        return found

    monkeypatch.setattr(passes, "program", noted)
    jc.score(small.model, small.images, features)
    (_, most), *_ = sizes
    assert most > 0
    sizes.clear()
    monkeypatch.setattr(passes, "device_memory", lambda: (most - 1) / passes.FITS)
    jc.score(small.model, small.images, features)
    # tried, halved, and then every chunk, the last one filled up
    assert [size for size, _ in sizes] == [8, 4, 4, 4]
