"""What an atlas answers, against plain loops over its circuits."""

import numpy as np
import pytest

import jaxcircuits as jc
from jaxcircuits.atlas import overlaps, store

pytestmark = pytest.mark.filterwarnings("ignore:.*so that r is not defined")

KEEP = 0.3


@pytest.fixture(scope="module")
def atlas(small, tmp_path_factory):
    directory = tmp_path_factory.mktemp("asked") / "atlas"
    features = [jc.Features("features.0"), jc.Features("layer1.conv1")]
    options = {"criterion": "magnitude", "keep": [KEEP, 0.1], "chunk": 3}
    jc.build_atlas(small.model, small.images, features, directory=directory, **options)
    return jc.Atlas(directory)


@pytest.fixture(scope="module")
def circuits(atlas):
    return {feature: atlas.circuit(feature, keep=KEEP) for feature in atlas.features}


def kernels(circuit):
    """A circuit as a set of (layer, o, i)."""
    return {(name, int(o), int(i)) for name, mask in circuit.masks.items() for i, o in np.argwhere(mask)}


def overlap(a, b):
    a, b = kernels(a), kernels(b)
    return len(a & b) / len(a | b)


def test_overlaps_of_all_pairs(atlas, circuits):
    matrix = atlas.iou_matrix(keep=KEEP)
    assert list(matrix.index) == list(matrix.columns) == list(atlas.features) and len(matrix) == 16
    for a in atlas.features:
        for b in atlas.features:
            assert matrix.loc[a, b] == pytest.approx(overlap(circuits[a], circuits[b]), abs=1e-12)
    assert 0.01 < np.mean(matrix.to_numpy() > 0) < 1
    part = atlas.iou_matrix("layer1.conv1", keep=KEEP)
    np.testing.assert_array_equal(part, matrix.iloc[8:, 8:])
    pair = "features.0:3", "layer1.conv1:2"
    assert atlas.iou(*pair, keep=KEEP) == pytest.approx(overlap(*(circuits[f] for f in pair)))


def test_overlaps_of_many_blocks(monkeypatch):
    monkeypatch.setattr(overlaps, "BLOCK", 16)
    masks = np.random.default_rng(0).random((7, 5, 11)) < 0.3
    bits = store.packed(masks)
    rows = np.array([0, 2, 3, 4, 6, 7, 8])
    found = overlaps.intersections([(rows, bits), (np.arange(2), bits[:2])], 9)
    for a, b in np.ndindex(7, 7):
        more = int((masks[a] & masks[b]).sum()) if a == b == 0 else 0  # row 0 has both layers; so does no other pair
        assert found[rows[a], rows[b]] == (masks[a] & masks[b]).sum() + more
    assert found[1, 1] == masks[1].sum() and found[5].sum() == 0
    np.testing.assert_array_equal(overlaps.use_counts(bits, (11, 5)), masks.sum(0).T)
    assert np.isnan(overlaps.iou_of(found)[5, 5])


def test_nearest(atlas, circuits):
    found = atlas.nearest("layer1.conv1:2", 4, keep=KEEP)
    others = [f for f in atlas.features if f != "layer1.conv1:2"]
    expected = sorted((overlap(circuits["layer1.conv1:2"], circuits[f]) for f in others), reverse=True)
    np.testing.assert_allclose(found["iou"], expected[:4])
    first = found.iloc[0]
    assert first["shared"] == len(kernels(circuits["layer1.conv1:2"]) & kernels(circuits[first["feature"]]))
    assert set(atlas.nearest("layer1.conv1:2", layer="features.0", keep=KEEP)["layer"]) == {"features.0"}


def test_users_and_sharing(atlas, circuits):
    users = {}
    for feature, circuit in circuits.items():
        for kernel in kernels(circuit):
            users.setdefault(kernel, set()).add(feature)
    found = atlas.sharing("features.0", keep=KEEP)
    assert len(found) == 8 * 3 and (np.diff(found["users"]) <= 0).all()
    for row in found.itertuples():
        expected = users.get(("features.0", row.output, row.input), set())
        assert row.users == len(expected) and row.share == pytest.approx(len(expected) / 16)
        assert set(atlas.users("features.0", row.output, row.input, keep=KEEP)["feature"]) == expected
    channel = atlas.users("features.0", 4, keep=KEEP)
    for feature, circuit in circuits.items():
        count = sum(name == "features.0" and o == 4 for name, o, _ in kernels(circuit))
        assert channel.set_index("feature")["kernels"].get(feature, 0) == count


def test_statistics_and_table(atlas, circuits):
    row = atlas.statistics().set_index(["layer", "keep"]).loc[("layer1.conv1", KEEP)]
    own = [circuits[f] for f in atlas.features[8:]]
    r = np.array([c.manifest["correlation"] for c in own], float)
    assert row["features"] == 8 and row["constant"] == np.isnan(r).sum()
    assert row["mean"] == pytest.approx(np.nanmean(r)) and row["median"] == pytest.approx(np.nanmedian(r))
    used = set().union(*map(kernels, own))
    assert row["used"] == pytest.approx(len(used) / (8 * 3 + 8 * 4))
    table = atlas.table()
    assert len(table) == 32 and set(table["layer"]) == {"features.0", "layer1.conv1"}
    assert table["kept"].tolist()[::2] == [c.manifest["kept"] for c in circuits.values()]
    masks = atlas.masks("layer1.conv1", keep=KEEP)
    np.testing.assert_array_equal(masks["features.0"], [c.masks["features.0"] for c in own])


def test_clusters(atlas):
    """Features of features.0 share no kernel; channels of one group of layer1.conv1 may share those before it."""
    found = atlas.clusters(overlap=1e-9, keep=KEEP)
    assert sorted(found["feature"]) == sorted(atlas.features)
    matrix = atlas.iou_matrix(keep=KEEP)
    for _, group in found.groupby("cluster"):
        names = list(group["feature"])
        assert (group["size"] == len(names)).all()
        for row in group.itertuples():
            others = [matrix.loc[row.feature, name] for name in names if name != row.feature]
            assert row.iou == pytest.approx(np.mean(others)) if others else np.isnan(row.iou)
    assert found["cluster"].max() + 1 < 16 and found["size"].iloc[0] == found["size"].max() > 1
    assert atlas.clusters("features.0", number=8, keep=KEEP)["cluster"].nunique() <= 8


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda a: a.circuit("features.0:3", keep=0.2), r"not keep=0.2; expected keep of 0.3 or 0.1"),
        (lambda a: a.circuit("features.0:3", kernels=5), r"not kernels=5; expected keep"),
        (lambda a: a.circuit("features.0:3"), r"not one level alone; expected keep of 0.3 or 0.1"),
        (lambda a: a.circuit("features.0:8", keep=0.1), r"no feature 'features.0:8'; the nearest"),
        (lambda a: a.sharing("features.3", keep=0.1), r"no kernels of 'features.3'"),
        (lambda a: a.users("features.0", 8, keep=0.1), r"no output channel 8; they are 0 to 7"),
        (lambda a: a.iou_matrix("layer1", keep=0.1), r"no features of 'layer1'"),
        (lambda a: a.clusters(keep=0.1), r"either number, of clusters, or overlap"),
    ],
)
def test_what_it_cannot_answer(atlas, ask, sentence):
    with pytest.raises(jc.InputError, match=sentence):
        ask(atlas)
