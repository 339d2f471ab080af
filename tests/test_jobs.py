"""`extract`: circuits in the order asked, the same however they are shared out, and errors before any work."""

import json
import weakref

import jax
import numpy as np
import pytest

import jaxcircuits as jc
from jaxcircuits import jobs
from jaxcircuits.circuit import COMPUTED

# small circuits of a small network are often constant
pytestmark = pytest.mark.filterwarnings("ignore:.*so that r is not defined")

LAYER = "features.3"
DIRECTIONS = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)


def extracted(small, features, **options):
    return list(jc.extract(small.model, small.images, features, **{"keep": 0.3} | options))


def same(a, b, tolerance=1e-5):
    """Two circuits of one feature; a score that rounds otherwise may let two kernels swap places."""
    assert a.stem == b.stem and list(a.masks) == list(b.masks)
    for name in a.masks:
        assert (a.masks[name] != b.masks[name]).sum() <= 2
        if a.scores is not None:
            np.testing.assert_allclose(a.scores[name], b.scores[name], rtol=1e-4, atol=tolerance)
    assert {k: v for k, v in a.manifest.items() if k not in COMPUTED} == {
        k: v for k, v in b.manifest.items() if k not in COMPUTED
    }


def test_order_and_contents(small):
    asked = [jc.Features(LAYER, [4, 1]), jc.Features("features.0", [7]), jc.Features(LAYER, [0])]
    circuits = extracted(small, asked, keep=[0.1, 0.5])
    order = [(LAYER, 4), (LAYER, 1), ("features.0", 7), (LAYER, 0)]
    found = [(c.manifest["feature"]["layer"], c.manifest["feature"]["channel"], c.manifest["keep"]) for c in circuits]
    assert found == [(*which, keep) for which in order for keep in (0.1, 0.5)]
    for circuit in (circuits[2], circuits[5]):
        manifest, one = circuit.manifest, circuit.features
        scores = jc.score(small.model, small.images, one)
        masks = jc.top_kernels(scores, keep=manifest["keep"])
        assert manifest["layers"] == list(circuit.masks) == list(scores.layers)
        relevant = sum(int(r.sum()) for r in scores.relevant.values())
        kept = sum(int(mask.sum()) for mask in circuit.masks.values())
        assert manifest["relevant"] == relevant and manifest["kept"] == kept
        assert manifest["kept"] == max(1, int(relevant * manifest["keep"] + 0.5))
        effective = jc.effective_kernels(small.model, one, masks)
        assert manifest["effective"] == sum(int(m.sum()) for m in effective.values()) <= kept
        r = jc.correlation(small.model, small.images, one, {n: m[None] for n, m in circuit.masks.items()})[0]
        assert (manifest["correlation"] is None) == np.isnan(r)
        if manifest["correlation"] is not None:
            assert manifest["correlation"] == pytest.approx(r, abs=1e-5)
        json.dumps(manifest, allow_nan=False)


def test_manifest(small):
    (circuit,) = extracted(small, jc.Features(LAYER, [2], position=(1, 2), objective="max"), seed=4, criterion="random")
    manifest = circuit.manifest
    assert manifest["model"] == "small" and manifest["weights"] == {"source": "given", "sha256": small.model.sha256}
    assert manifest["images"]["source"] == "array" and manifest["images"]["number"] == 5
    assert manifest["feature"] == {"layer": LAYER, "channel": 2, "position": [1, 2]}
    asked = {"criterion": "random", "seed": 4, "absolute": None, "objective": "max", "keep": 0.3, "kernels": None}
    assert asked.items() <= manifest.items()
    assert manifest["dtype"] == "float32" and manifest["versions"]["jax"] == jax.__version__
    (other,) = jc.extract(small.model, small.images[:4], jc.Features(LAYER, [2]))
    assert other.manifest["images"]["digest"] != manifest["images"]["digest"]
    (other,) = jc.extract(small.model, small.images.reshape(5, 11, 13, 3), jc.Features(LAYER, [2]))
    assert other.manifest["images"]["digest"] != manifest["images"]["digest"]  # of the same bytes
    asked = {"seed": None, "absolute": "per_image", "objective": "abs", "keep": 0.05}
    assert asked.items() <= other.manifest.items()


def test_neighbours_share_their_passes(small, monkeypatch):
    passes, score = [], jobs.score_levels
    monkeypatch.setattr(
        jobs, "score_levels", lambda *args, **options: passes.append(args[2].channels) or score(*args, **options)
    )
    asked = [
        jc.Features(LAYER, [1]),
        jc.Features(LAYER, [3, 5]),
        jc.Features("features.0", [0]),
        jc.Features(LAYER, [2]),
    ]
    extracted(small, asked)
    assert passes == [(1, 3, 5), (0,), (2,)]


def test_chunks_and_batches_change_nothing(small):
    asked = jc.Features(LAYER, range(5))
    options = {"with_scores": True, "keep": [0.2, 0.4]}
    alone = [c for f in asked for c in extracted(small, f.resolve(small.model.layers), **options)]
    for shared in ({"chunk": 2}, {"chunk": 64}, {"chunk": 3, "batch": 2}):
        for a, b in zip(extracted(small, asked, **options, **shared), alone, strict=True):
            same(a, b)


def test_positions_and_directions(small):
    places = np.array([[0, 0], [1, 1], [2, 0], [0, 1], [2, 1]])
    asked = [
        jc.Features(LAYER, [1], position="middle"),
        jc.Features(LAYER, [1], position="argmax"),
        jc.Features(LAYER, [1], position=places),
        jc.Features(LAYER, directions=DIRECTIONS, names=["../a", "b"], position=(0, 1)),
        jc.Features(LAYER, directions=np.eye(6)[1], position="middle"),
    ]
    circuits = extracted(small, asked, with_scores=True)
    stems = [c.stem.removesuffix(".snip.keep0.3") for c in circuits]
    where = ("1@middle", "1@argmax", "1@given", ".._a@0,1", "b@0,1", "direction-0@middle")
    assert stems == [f"{LAYER}_{at}" for at in where]
    np.testing.assert_array_equal(circuits[3].direction, DIRECTIONS[0])
    assert circuits[3].manifest["feature"]["digest"] != circuits[4].manifest["feature"]["digest"]
    assert circuits[2].manifest["feature"]["position"] == places.tolist()
    for name, scores in circuits[0].scores.items():  # the direction is channel 1
        np.testing.assert_allclose(circuits[5].scores[name], scores, rtol=1e-4, atol=1e-6)


def test_round_trip(small, tmp_path):
    asked = [jc.Features(LAYER, [1], position="middle"), jc.Features(LAYER, directions=DIRECTIONS)]
    for i, circuit in enumerate(extracted(small, asked, keep=None, kernels=7)):
        circuit.save(tmp_path / f"{i}")
        again = jc.Circuit.load(tmp_path / f"{i}")
        assert again.manifest == circuit.manifest
        same(again, circuit)
        again.save(tmp_path / f"{i}")  # the same question


def test_mean_ablation(small, tmp_path):
    """The same masks with the means of what they remove, over the images that scored, which the file keeps."""
    asked = jc.Features(LAYER, [1, 4, 0])
    zero = extracted(small, asked, keep=[0.5, 0.8])
    for a, b in zip(zero, extracted(small, asked, keep=[0.5, 0.8], ablation="mean", chunk=2), strict=True):
        masks = {name: mask[None] for name, mask in b.masks.items()}
        assert a.offsets is None and a.manifest["ablation"] == "zero" and b.manifest["ablation"] == "mean"
        assert all((a.masks[name] == mask[0]).all() for name, mask in masks.items())
        for name, offset in jc.mean_offsets(small.model, small.images, masks).items():
            np.testing.assert_allclose(b.offsets[name], offset[0], atol=1e-6)
        b.save(tmp_path / b.stem)
        given = {name: offset[None] for name, offset in jc.Circuit.load(tmp_path / b.stem).offsets.items()}
        r = jc.correlation(small.model, small.images, b.features, masks, ablation="mean", offsets=given)[0]
        assert b.manifest["correlation"] == pytest.approx(r, abs=1e-5) != a.manifest["correlation"]


def test_is_lazy(small, monkeypatch):
    """Scores of a chunk are gone before those of the next are made; and nothing is scored before it is asked for."""
    calls, made = [], []
    score = jobs.score_levels

    def noted(*args, **options):
        assert not any(ref() for ref in made)
        calls.append(len(args[2]))
        found = score(*args, **options)
        made.extend(weakref.ref(scores) for scores in found)
        return found

    monkeypatch.setattr(jobs, "score_levels", noted)
    circuits = jc.extract(small.model, small.images, jc.Features(LAYER), chunk=2)
    assert not calls
    for i, _ in enumerate(circuits):
        assert len(calls) == i // 2 + 1
    assert calls == [2, 2, 2]


@pytest.mark.parametrize(("criterion", "rounds"), [("snip", 0), ("magnitude", 0), ("force", 2)])
def test_progress_adds_up(small, criterion, rounds):
    """Five features in chunks of two, of which one is asked for twice, two amounts, five images: each feature is scored
    once, in rounds for each amount, and judged for each."""
    features, done, how = jc.Features(LAYER, [*range(4), 0]), [], {"chunk": 2, "criterion": criterion}
    if rounds:
        how["steps"] = rounds
    extracted(small, features, keep=[0.2, 0.3], progress=done.append, **how)
    assert sum(done) == pytest.approx(5 * 5 * (1 + 2 * rounds + 2))
    done.clear()
    if rounds:
        how["keep"] = 0.2
    jc.score(small.model, small.images, features, progress=done.append, **how)
    assert sum(done) == pytest.approx(5 * 5 * (1 + rounds))


@pytest.mark.parametrize(
    ("features", "options", "why"),
    [
        (jc.Features("conv9", [1]), {}, "there is no layer 'conv9'"),
        (jc.Features(LAYER, [6]), {}, "no channel 6"),
        (jc.Features(LAYER, [1], position=(9, 0)), {}, "outside the map"),
        (jc.Features(LAYER, [1], position=np.zeros((4, 2), int)), {}, "4 positions for 5 images"),
        (jc.Features(LAYER, directions=np.ones(5)), {}, "5 entries"),
        (jc.Features(LAYER, [1]), {"keep": 0}, "keep is 0; expected a fraction"),
        (jc.Features(LAYER, [1]), {"keep": [0.5, float("nan")]}, "keep is nan"),
        (jc.Features(LAYER, [1]), {"keep": []}, "keep is empty"),
        (jc.Features(LAYER, [1]), {"kernels": 0}, "kernels is 0"),
        (jc.Features(LAYER, [1]), {"kernels": 1.5}, "kernels is 1.5"),
        (jc.Features(LAYER, [1]), {"kernels": [3, 10**30]}, "a feature has only"),
        (jc.Features(LAYER, [1]), {"kernels": 100_000}, "a feature has only"),
        (jc.Features(LAYER, [1]), {"keep": 0.1, "kernels": 3}, "either keep, .* or kernels"),
        (jc.Features(LAYER, [1]), {"criterion": "best"}, "unknown criterion 'best'"),
        (jc.Features(LAYER, [1]), {"criterion": "actgrad", "absolute": "whole_set"}, "no absolute='whole_set'"),
        (jc.Features(LAYER, [1]), {"ablation": "median"}, "unknown ablation 'median'"),
        (jc.Features(LAYER, [1]), {"precision": "int4"}, "unknown precision 'int4'"),
        (jc.Features(LAYER, [1]), {"layers": ["fc2"]}, "fc2"),
        (jc.Features(LAYER, [1]), {"steps": 5}, "steps are those of force and learned; snip takes none"),
    ],
)
def test_errors_come_before_any_work(small, features, options, why, monkeypatch):
    monkeypatch.setattr(jobs, "score_levels", None)
    options = {} if "kernels" in options or "keep" in options else {"keep": 0.3}, options
    with pytest.raises(jc.InputError, match=why):
        jc.extract(small.model, small.images, [jc.Features(LAYER, [0]), features], **options[0], **options[1])


def test_no_features(small, tmp_path):
    for call, more in ((jc.extract, {}), (jc.compare, {}), (jc.build_atlas, {"directory": tmp_path / "a"})):
        with pytest.raises(jc.InputError, match="there are no features; expected at least one"):
            call(small.model, small.images, [], **more)
    assert not list(tmp_path.iterdir())


def test_layers_are_part_of_the_question(small, tmp_path):
    (whole,) = extracted(small, jc.Features(LAYER, [1]))
    (part,) = extracted(small, jc.Features(LAYER, [1]), layers=[LAYER])
    assert list(part.masks) == [LAYER]
    whole.save(tmp_path / "a")
    with pytest.raises(jc.InputError, match="not the same: layers"):
        part.save(tmp_path / "a")
