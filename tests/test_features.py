"""Features: how they are written, what they are checked against, and the numbers that are differentiated."""

import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from jaxcircuits import Features, InputError
from jaxcircuits.features import cotangents, joined, place_weights
from jaxcircuits.layers import Layer
from jaxcircuits.spelling import parse
from tests import twins

rng = np.random.default_rng(0)


def layer(name, outputs, output_shape, kind="conv"):
    ones = (1, 1)
    return Layer(name, (name,), kind, ones, ones, ((0, 0), (0, 0)), ones, 1, 3, outputs, (4, 4, 3), output_shape)


LAYERS = {
    "features.10": layer("features.10", 12, (5, 7, 12)),
    "layer1.0.conv1": layer("layer1.0.conv1", 3, (9, 9, 3)),
    "fc": layer("fc", 10, (10,), "dense"),
}

written = st.one_of(
    st.text(max_size=40),
    st.builds(
        "".join,
        st.lists(st.sampled_from([*LAYERS, ":", "@", ",", "-", "*", "1", "03", "99", ".npy", "argmax", "middle", "٣"])),
    ),
)


@given(written)
@example("features.10:" + "9" * 5000)
@example("features.10:1@" + "9" * 5000 + ",0")
@example("features.10:1@99999999999999999999,0")
@example("features.10:0-99999999999")
@example("features.10:\0.npy")
@example("features.10:\udce4.npy")
def test_any_text_is_a_feature_or_an_input_error(text):
    try:
        features = parse(text, LAYERS)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert len(features) == len(features.labels) > 0


places = st.sampled_from([None, "middle", "argmax", (4, 6), (0, 0)])


@given(st.lists(st.integers(0, 11), min_size=1, max_size=5), places, st.sampled_from(["abs", "sum", "max"]))
def test_labels_are_read_back(channels, place, objective):
    features = Features("features.10", channels, position=place, objective=objective)
    for label, feature in zip(features.labels, features, strict=True):
        read = parse(label, LAYERS, objective=objective)
        assert (read.layer, read.channels, read.position) == (feature.layer, feature.channels, feature.position)
        assert read.objective == objective and read.labels == (label,)


@pytest.mark.parametrize(
    "text, channels, position",
    [
        ("features.10:3", (3,), None),
        ("features.10:2-5", (2, 3, 4, 5), None),
        ("features.10:2-2", (2,), None),
        ("features.10:*", tuple(range(12)), None),
        ("layer1.0.conv1:*@8,0", (0, 1, 2), (8, 0)),
        ("features.10:0-1@middle", (0, 1), "middle"),
        ("fc:9@argmax", (9,), "argmax"),
    ],
)
def test_written_features(text, channels, position):
    features = parse(text, LAYERS)
    assert (features.channels, features.position, len(features)) == (channels, position, len(channels))


@pytest.mark.parametrize(
    "text, message",
    [
        ("features.10", "is no feature; expected LAYER:CHANNEL, LAYER:A-B"),
        (":3", "is no feature"),
        ("features.10:", "is no feature"),
        ("features.10:3@", "is no feature"),
        ("features.10:@1,1", "is no feature"),
        ("features.10:x", "names no channel"),
        ("features.10:-1", "names no channel"),
        ("features.10:٣", "names no channel"),
        ("features.10:5-2", "runs backwards"),
        ("features.10:12", "has no channel 12; its channels are 0 to 11"),
        ("features.10:0-12", "has no channel 12"),
        ("features.1:0", "there is no layer 'features.1'; the nearest are 'features.10'"),
        ("features.10:0@left", "unknown position 'left'"),
        ("features.10:0@1,٣", "unknown position '1,٣'"),
        ("features.10:no.npy", "there is no file 'no.npy'"),
    ],
)
def test_mistakes_are_named(text, message):
    with pytest.raises(InputError, match=message):
        parse(text, LAYERS)


@pytest.mark.parametrize("text, map", [("features.10:0@5,0", "'features.10', which is 5 x 7"), ("fc:0@0,1", "1 x 1")])
def test_positions_are_those_of_the_images(text, map):
    """Which may be larger than the network's nominal ones, of which `parse` is told."""
    features = parse(text, LAYERS)
    with pytest.raises(InputError, match=rf"position \([50], [01]\) is outside the map of .*{map}"):
        features.resolve(LAYERS)


def test_one_of_several_and_names_of_any_type():
    features = Features("features.10", [3, 1])
    assert features[1].channels == features[-1].channels == (1,)
    directions = Features("features.10", directions=np.eye(12)[:2], names=range(2))
    assert directions.names == ("0", "1") and directions[0].labels == ("features.10:0",)
    assert Features("features.10", directions=np.eye(12)[:2], names=np.array(["a", "b"])).names == ("a", "b")
    with pytest.raises(InputError, match="there are 0 names for 1 directions"):
        Features("features.10", directions=np.eye(12)[0], names=[])


def test_directions_from_files(tmp_path):
    many, one = rng.standard_normal((2, 12)), np.arange(12)
    np.save(tmp_path / "many.npy", many)
    np.save(tmp_path / "one@2.npy", one)
    features = parse(f"features.10:{tmp_path}/many.npy@middle", LAYERS)
    np.testing.assert_array_equal(features.matrix(12), many.astype(np.float32))
    assert features.labels == ("features.10:many-0@middle", "features.10:many-1@middle")
    assert features[1:].labels == ("features.10:many-1@middle",) and len(features[1:]) == 1
    np.testing.assert_array_equal(parse(f"features.10:{tmp_path}/one@2.npy", LAYERS).matrix(12), [one])


@pytest.mark.parametrize(
    "content, message",
    [
        (np.ones((2, 11)), "directions have 11 entries; 'features.10' has 12 channels"),
        (np.ones((2, 3, 12)), r"float64 of shape \(2, 3, 12\); expected numbers of shape"),
        (np.float32(1), r"shape \(\)"),
        (np.array(["a"] * 12), "expected numbers"),
        (np.ones(12, complex), "expected numbers"),
        (np.array([{}] * 12), "is no .npy file of numbers"),  # pickled objects can run code
        (np.zeros((0, 12)), "directions are finite numbers"),
        (np.full(12, np.nan), "directions are finite numbers"),
        (np.full(12, 1e300), "directions are finite numbers"),
        (np.stack([np.ones(12), np.zeros(12)]), "direction 1 is zero everywhere"),
        (b"not numpy's", "is no .npy file of numbers"),
        (b"", "is no .npy file of numbers"),
        (b"PK\x03\x04 no archive", "is no .npy file of numbers"),
    ],
)
def test_files_without_directions(tmp_path, content, message):
    file = tmp_path / "directions.npy"
    file.write_bytes(content) if isinstance(content, bytes) else np.save(file, content)
    with pytest.raises(InputError, match=message):
        parse(f"features.10:{file}", LAYERS)


def test_an_archive_is_no_directions(tmp_path):
    file = tmp_path / "archive.npy"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", b"")
    with pytest.raises(InputError, match=r"is no \.npy file of numbers"):
        parse(f"features.10:{file}", LAYERS)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"channels": [0], "directions": np.ones((1, 12))}, "either channels or directions, not both"),
        ({"objective": "mean"}, "unknown objective 'mean'; expected one of abs, sum, max"),
        ({"channels": []}, "channels are whole numbers, at least one"),
        ({"channels": [1.5]}, "channels are whole numbers"),
        ({"channels": 1.5}, "channels are whole numbers"),
        ({"channels": "12"}, "channels are whole numbers"),
        ({"directions": "north"}, "directions are finite numbers"),
        ({"directions": [[1, 2], [3]]}, "directions are finite numbers"),
        ({"directions": np.ones((1, 1, 12))}, "directions are finite numbers"),
        ({"directions": np.ones((2, 12)), "names": ["one"]}, "there are 1 names for 2 directions"),
        ({"channels": [1], "names": ["one"]}, "names are for directions"),
        ({"position": "left"}, "unknown position 'left'"),
        ({"position": (1.0, 2.0)}, "unknown position"),
        ({"position": (1, 2, 3)}, "unknown position"),
        ({"position": ((1, 2), (3,))}, "unknown position"),
        ({"position": (-1, 0)}, r"position \(-1, 0\) is outside"),
        ({"position": np.array([[0, 0], [4, 7]])}, r"position \(4, 7\) is outside"),
        ({"channels": [-1]}, "has no channel -1"),
    ],
)
def test_features_that_mean_nothing(options, message):
    with pytest.raises(InputError, match=message):
        Features("features.10", **options).resolve(LAYERS)


def test_how_many_there_are():
    assert len(Features("features.10", 4)) == len(Features("features.10", np.int64(4))) == 1
    assert Features("features.10").resolve(LAYERS).channels == tuple(range(12))
    with pytest.raises(InputError, match="use resolve"):
        len(Features("features.10"))


def test_rows_keep_their_options():
    features = Features("features.10", [7, 3, 5], position=np.array([[0, 1], [2, 3]]), objective="max")
    part = features[np.array([2, 0, 0])]
    assert (part.channels, part.objective, part.place) == ((5, 7, 7), "max", "given")
    np.testing.assert_array_equal(part.places(2), [[0, 1], [2, 3]])
    with pytest.raises(InputError, match="2 positions for 3 images"):
        part.places(3)


def test_neighbours_are_joined_only_if_alike():
    a, b = Features("features.10", [1]), Features("features.10", [2, 3])
    assert [f.channels for f in joined([a, b])] == [(1, 2, 3)]
    others = [
        Features("features.10", [1], position="middle"),
        Features("features.10", [1], objective="max"),
        Features("fc", [1]),
        Features("features.10", directions=np.ones(12)),
        Features("features.10", [1], position=np.zeros((3, 2), int)),
    ]
    for other in others:
        assert len(joined([a, other])) == len(joined([other, a])) == 2
    assert len(joined([others[-1], others[-1]])) == 2


PLACES = [None, (3, 1), "middle", "argmax", np.array([[0, 1], [3, 4], [2, 2]])]


@pytest.mark.parametrize("objective", ["abs", "sum", "max"])
@pytest.mark.parametrize("place", PLACES)
def test_cotangents_are_autograds(objective, place):
    """Rounded maps are full of zeros, where |a| has no slope, and of ties."""
    maps = rng.standard_normal((2, 3, 4, 5)).round().astype(np.float32)  # F, N, H, W
    features = Features("features.10", [0, 1], position=place, objective=objective)
    where = place_weights(features.place, jnp.asarray(maps), jnp.asarray(features.places(3)))
    found = cotangents(objective, jnp.asarray(maps), where)
    assert found.shape == maps.shape
    for f, n in np.ndindex(2, 3):
        alone = torch.tensor(maps[f, n], requires_grad=True)
        at = tuple(place[n]) if isinstance(place, np.ndarray) else place
        first_largest = divmod(int(maps[f, n].argmax()), 5)
        value = twins.objective_of(alone, objective, first_largest if features.place == "argmax" else at)
        (expected,) = torch.autograd.grad(value, alone)
        if objective == "max" and place is None:  # PyTorch divides max() among ties; of max pooling the first has it
            expected = torch.zeros(4, 5)
            expected[first_largest] = 1
        np.testing.assert_array_equal(found[f, n], expected)
