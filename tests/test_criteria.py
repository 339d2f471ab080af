"""Scores against their twins in PyTorch, and what they must not depend on."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import jaxcircuits as jc
from jaxcircuits.criteria import actgrad
from jaxcircuits.features import Features
from jaxcircuits.scores import Record
from tests import twins

CONVOLUTIONS = ("features.0", "layer1.conv1", "layer1.conv2", "features.3")
GIVEN = np.array([[0, 1], [2, 4], [1, 1], [0, 0], [2, 3]])  # a position an image, in maps of 3 x 5
DIRECTIONS = np.random.default_rng(2).standard_normal((3, 8)).astype(np.float32)

SOME = [("snip", "per_image"), ("snip", "whole_set"), ("actgrad", "per_image")]


def assert_close(found, expected, tolerance=1e-5):
    """Equal within a fraction of the layer's largest value."""
    assert np.abs(expected).max() > 0
    assert np.abs(np.asarray(found) - expected).max() <= tolerance * np.abs(expected).max()


def compare(small, features, layers, criterion, absolute="per_image"):
    """Scores of two or more features, with a padded last block, against the twin's."""
    options = {"criterion": criterion, "absolute": absolute, "batch": 2}
    scores = jc.score(small.model, small.images, features, layers=layers, **options)
    resolved = features.resolve(small.model.network(small.images.shape[1:]).layers)
    how = {"absolute": absolute, "objective": features.objective, "places": resolved.position}
    twin = {"snip": twins.snip, "actgrad": twins.actgrad}[criterion]
    for f, direction in enumerate(resolved.matrix(small.model.layers[features.layer].outputs)):
        expected = twin(small.torch, small.images, features.layer, direction, scores.layers, **how)
        for name in scores.layers:
            assert_close(scores.values[name][f].T, expected[name])
    return scores


def test_the_networks_agree(small):
    seen = twins.with_kernels(small.torch, {})(small.images)
    assert_close(small.model(small.images), seen["fc2"].numpy())


@pytest.mark.parametrize("criterion, absolute", [*SOME, ("snip", "none"), ("actgrad", "none")])
def test_channels(small, criterion, absolute):
    scores = compare(small, Features("features.3", [4, 0]), None, criterion, absolute)
    assert scores.layers == CONVOLUTIONS


@pytest.mark.parametrize("criterion, absolute", SOME)
def test_dense_layers(small, criterion, absolute):
    scores = compare(small, Features("fc2", [3, 1], objective="sum"), None, criterion, absolute)
    assert scores.layers == (*CONVOLUTIONS, "fc1", "fc2")


@pytest.mark.parametrize("criterion, absolute", SOME)
def test_directions_through_a_grouped_layer(small, criterion, absolute):
    compare(small, Features("layer1.conv1", directions=DIRECTIONS), None, criterion, absolute)


@pytest.mark.parametrize(
    "position, objective", [(None, "max"), ((2, 1), "sum"), ("middle", "abs"), ("argmax", "sum"), (GIVEN, "abs")]
)
def test_positions_and_objectives(small, position, objective):
    features = Features("layer1.conv2", [5, 0], position=position, objective=objective)
    compare(small, features, ["layer1.conv2", "layer1.conv1"], "snip")


def test_signed_actgrad_is_signed_snip(small):
    features = Features("features.3", [4, 0])
    snip = jc.score(small.model, small.images, features, criterion="snip", absolute="none", batch=2).values
    actgrad = jc.score(small.model, small.images, features, criterion="actgrad", absolute="none", batch=2).values
    layers = small.model.network(small.images.shape[1:]).layers
    for name in CONVOLUTIONS:
        positions, weights = np.prod(layers[name].positions), np.prod(layers[name].window)
        assert_close(actgrad[name] * positions, np.asarray(snip[name] * weights))


def test_magnitude(small):
    scores = jc.score(small.model, small.images, Features("layer1.conv1", [1, 6]), criterion="magnitude")
    for name in CONVOLUTIONS[:2]:
        expected = small.torch.get_submodule(name).weight.abs().mean((2, 3)).detach().numpy().T
        assert_close(scores.values[name], expected * np.asarray(scores.relevant[name]))
    assert scores.record.absolute is None


def test_random_depends_on_seed_and_feature_alone(small):
    def draw(channels, **options):
        return jc.score(small.model, small.images, Features("features.3", channels), criterion="random", **options)

    many, one = draw([0, 3, 5], chunk=2), draw([3], batch=2)
    for name in CONVOLUTIONS:
        values = np.asarray(many.values[name])
        np.testing.assert_array_equal(values[1:2], one.values[name])
        assert (values >= 0).all() and (values < 1).all() and not (values[0] == values[2])[values[0] > 0].any()
        assert (draw([3], seed=1).values[name] != one.values[name]).any()
    assert len(np.unique(np.concatenate([v.ravel() for v in many.values.values()]))) > 0.99 * sum(
        int(r.sum()) for r in many.relevant.values()
    )


@pytest.mark.parametrize("criterion, absolute", [("snip", "whole_set"), ("actgrad", "per_image")])
def test_chunk_and_batch_change_nothing(small, criterion, absolute):
    """Features stay in their order; neither the padding of the last block nor that of the last chunk adds anything."""
    options = {"criterion": criterion, "absolute": absolute}
    features = Features("features.3", [5, 0, 3])
    reference = jc.score(small.model, small.images, features, **options, chunk=1, batch=1)
    for f, feature in enumerate(features):
        alone = jc.score(small.model, small.images, feature, **options, batch=1)
        for name in CONVOLUTIONS:
            np.testing.assert_array_equal(alone.values[name][0], reference.values[name][f])
    for chunk, batch in [(2, 2), (None, 3)]:
        other = jc.score(small.model, small.images, features, **options, chunk=chunk, batch=batch)
        for name in CONVOLUTIONS:
            assert_close(other.values[name], np.asarray(reference.values[name]), 1e-6)


def test_no_score_outside_the_relevant_kernels(small):
    scores = jc.score(small.model, small.images, Features("layer1.conv1", [6]))
    for name in CONVOLUTIONS[:2]:
        values, relevant = np.asarray(scores.values[name]), np.asarray(scores.relevant[name])
        assert relevant.any() and not relevant.all() and not values[~relevant].any() and values[relevant].any()


def test_nothing_compiles_after_the_first_images(small):
    model = jc.Model(small.model.module, small.model.variables, apply_options={"train": False}, input_size=13)
    images = np.concatenate([small.images, small.images[:4]])
    compiled, steps = [], []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(len(steps))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jc.score(model, images, Features("features.3", [0, 1, 2]), batch=2, progress=steps.append)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert steps == [6, 6, 6, 6, 3]
    assert compiled and max(compiled) == 0


def test_images_as_blocks_and_progress(small):
    steps = []
    features = Features("features.3", [0, 1])
    blocks = [small.images[:3], small.images[3:]]
    found = jc.score(small.model, blocks, features, chunk=2, batch=2, progress=steps.append)
    expected = jc.score(small.model, small.images, features, chunk=2, batch=2)
    for name in CONVOLUTIONS:
        np.testing.assert_array_equal(found.values[name], expected.values[name])
    assert steps == [4, 4, 2]
    assert expected.record == Record("snip", "per_image", "abs", 5, None, "float32")


def test_lower_precision_is_close(small):
    features = Features("features.3", [0, 1])
    scores = jc.score(small.model, small.images, features, precision="bfloat16", chunk=2, batch=2)
    expected = jc.score(small.model, small.images, features, chunk=2, batch=2)
    assert scores.record.precision == "bfloat16"
    for name in CONVOLUTIONS:
        assert_close(scores.values[name], np.asarray(expected.values[name]), 2e-2)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"criterion": "snipp"}, "unknown criterion 'snipp'; expected one of snip, actgrad, force, magnitude, random"),
        ({"absolute": "sometimes"}, "unknown absolute 'sometimes'; expected one of per_image, whole_set, none"),
        ({"criterion": "actgrad", "absolute": "whole_set"}, "actgrad has no absolute='whole_set'"),
        ({"criterion": "magnitude", "absolute": "sometimes"}, "unknown absolute 'sometimes'"),
        ({"precision": "float16"}, "unknown precision 'float16'; expected one of float32, tf32, bfloat16"),
        ({"layers": ["features.1"]}, "no layer 'features.1'; the nearest are 'features.3', 'features.0'"),
        ({"layers": ["fc1"]}, "layer 'fc1' runs after 'features.3'"),
        ({"layers": []}, "no layer is left to score"),
        ({"chunk": 0}, "chunk is 0; expected a whole number of at least 1"),
        ({"chunk": -1}, "chunk is -1; expected a whole number of at least 1"),
        ({"batch": 0}, "of at least 1"),
        ({"batch": -1}, "of at least 1"),
        ({"batch": 2.5}, "batch is 2.5; expected a whole number of at least 1"),
        ({"chunk": "2"}, "chunk is '2'; expected a whole number of at least 1"),
        ({"seed": None, "criterion": "random"}, "seed is None; expected a whole number from 0 to 4294967295"),
        ({"seed": 2**32, "criterion": "random"}, "seed is 4294967296; expected a whole number from 0 to 4294967295"),
        ({"steps": 3}, "steps are those of force and learned; snip takes none"),
    ],
)
def test_options_that_mean_nothing(small, options, message):
    with pytest.raises(jc.InputError, match=message):
        jc.score(small.model, small.images, Features("features.3", [0]), **options)


@pytest.mark.parametrize(
    "features, message",
    [
        (Features("features.33", [0]), "there is no layer 'features.33'; the nearest are 'features.3', 'features.0'"),
        (Features("features.3", [6]), "'features.3' has no channel 6; its channels are 0 to 5"),
        (Features("features.3", [0], position=(3, 0)), r"position \(3, 0\) is outside the map of 'features.3'"),
        (Features("features.3", directions=[[1, 2]]), "directions have 2 entries; 'features.3' has 6 channels"),
        (Features("features.3", [0], position=GIVEN[:4]), "there are 4 positions for 5 images"),
    ],
)
def test_features_that_the_model_does_not_have(small, features, message):
    with pytest.raises(jc.InputError, match=message):
        jc.score(small.model, small.images, features)


def test_images_that_cannot_be_used(small):
    features = Features("features.3", [0])
    broken = small.images.copy()
    broken[4, 0, 0, 0] = np.nan
    for images, message in [
        ([], "no images"),
        (small.images[:0], "expected float"),
        (broken, "NaN or infinity"),
        (small.images[..., :1], "Small does not run on an image of shape"),
        (iter([small.images]), "iterator"),
    ]:
        with pytest.raises(jc.InputError, match=message):
            jc.score(small.model, images, features)


def test_missing_weights():
    model = jc.load("alexnet", weights="lpips")
    image = np.zeros((1, 224, 224, 3), np.float32)
    with pytest.raises(jc.InputError, match=r"hold nothing for 'classifier.1', only for features.0, features.3"):
        jc.score(model, image, Features("classifier.6", [0]))


class OfSpread(nn.Module):
    """Divides by what is 0 in an image of zeros."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), use_bias=False, name="first")(x / x.std((1, 2), keepdims=True))
        return nn.Conv(3, (1, 1), name="last")(nn.relu(x))


@pytest.mark.parametrize("criterion", ["snip", "actgrad", "force"])
def test_blocks_that_are_not_full_are_filled_with_images(criterion):
    module, images = OfSpread(), np.random.default_rng(0).standard_normal((3, 8, 8, 3), np.float32)
    model = jc.Model(module, twins.random_variables(module, (1, 8, 8, 3)), input_size=8)
    options = {"criterion": criterion} | ({"keep": 0.5, "steps": 2} if criterion == "force" else {})
    one, two = (jc.score(model, images, jc.Features("last", [1]), batch=n, **options) for n in (1, 2))
    for name, values in one.values.items():
        np.testing.assert_allclose(two.values[name], values, rtol=1e-4, atol=1e-7)


def test_as_many_positions_as_an_int_does_not_hold(alexnet):
    layer = alexnet.layers["features.0"]
    total = np.full((64, 3, 1), 1e9, np.float32)
    found = actgrad._finish_on_support(total, layer, None, np.int32(1_281_167))  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(found, 1e9 / 1_281_167 / 3025, rtol=1e-5)


def test_what_the_caller_changes_afterwards_does_not_matter(small):
    variables = jax.tree.map(np.array, small.model.variables)
    model = jc.Model(small.model.module, variables, apply_options={"train": False}, input_size=13)
    places = np.zeros((5, 2), int)
    features = jc.Features("features.0", [1], position=places)
    places += 1
    for leaf in jax.tree.leaves(variables):
        leaf[...] = 0
    np.testing.assert_array_equal(features.position, np.zeros((5, 2)))
    assert model.sha256 == small.model.sha256
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), model.variables, small.model.variables))
