"""Circuits as graphs, against the gradients of the pinned network and hand-written connections; and what is written of
them."""

import io
import json
import xml.etree.ElementTree as ElementTree

import flax.linen as nn
import jax
import jax.numpy as jnp
import networkx
import numpy as np
import pytest
from PIL import Image

import jaxcircuits as jc
from jaxcircuits.diagram.blocks import INPUT
from jaxcircuits.diagram.connections import connections
from jaxcircuits.diagram.graph import flow, graph, ranking
from jaxcircuits.diagram.layout import LETTER, gap, layout, margin, orders, rows, shrunk
from jaxcircuits.diagram.pictures import _cut, top_patches
from tests.twins import random_variables, with_kernels


class Branches(nn.Module):
    """Branches that are concatenated, shuffled, split, skipped and gated, with a dense layer that is not scored."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), padding=1, name="stem")(x))
        a = nn.Conv(2, (1, 1), name="short")(x)
        b = nn.relu(nn.Conv(2, (1, 1), name="long.0")(x))
        b = nn.Conv(2, (3, 3), padding=1, name="long.1")(b)
        y = nn.relu(jnp.concatenate([a, b], -1))
        y = y.reshape(*y.shape[:3], 2, 2).swapaxes(3, 4).reshape(y.shape)
        left, right = jnp.split(y, 2, axis=-1)
        y = jnp.stack([right, left], -1).reshape(y.shape)
        y = nn.max_pool(x + nn.LayerNorm(name="norm")(y), (2, 2), (2, 2))
        gate = nn.sigmoid(nn.Conv(4, (1, 1), name="gate")(y.mean((1, 2), keepdims=True)))
        z = nn.relu(nn.Dense(3, name="maps")(y * gate))
        return nn.Conv(2, (1, 1), name="top")(z)


@pytest.fixture(scope="module")
def branches():
    return jc.Model(Branches(), random_variables(Branches(), (1, 8, 8, 3)), name="branches", input_size=8)


def origin(found, node):
    """A node in words: its block's kind, name and its channel; of a junction, what it joins."""
    block, channel = found.nodes[node]
    name, kind, whole = found.blocks[block]
    if node in found.parents:
        return kind, *sorted((origin(found, parent) for parent in found.parents[node]), key=str)
    return "all of" if whole else kind, name, channel


def test_connections_are_those_of_the_network(branches):
    network = branches.network()
    scored = [name for name in network.layers if name != "maps"]
    found = connections(network, branches.variables, scored)
    seen = {name: [origin(found, node) for node in sources] for name, sources in found.sources.items()}
    stem = [("layer", "stem", c) for c in range(4)]
    assert seen["stem"] == [(INPUT, INPUT, c) for c in range(3)]
    assert seen["short"] == seen["long.0"] == stem
    assert seen["long.1"] == [("layer", "long.0", c) for c in range(2)]
    a, b = ([("layer", name, c) for c in range(2)] for name in ("short", "long.1"))
    shuffled = [a[0], b[0], a[1], b[1]]  # (a0 a1) (b0 b1) read by columns
    stacked = [shuffled[2], shuffled[0], shuffled[3], shuffled[1]]  # the right half before the left, in turn
    joined = [("+", *sorted((s, y), key=str)) for s, y in zip(stem, stacked, strict=True)]
    assert seen["gate"] == joined
    gated = [("×", *sorted((j, ("layer", "gate", c)), key=str)) for c, j in enumerate(joined)]
    assert seen["maps"] == gated
    assert seen["top"] == [("all of", "maps", -1)] * 3


def test_grouped_and_dense_layers_and_a_skip(small):
    network = small.model.network()
    found = connections(network, small.model.variables, tuple(network.layers))
    assert [origin(found, n) for n in found.sources["fc1"]] == [("layer", "features.3", c) for c in range(6)]
    first = [("layer", "features.0", c) for c in range(8)]
    assert [origin(found, n) for n in found.sources["layer1.conv1"]] == first
    both = [("+", f, ("layer", "layer1.conv2", c)) for c, f in enumerate(first)]
    assert [origin(found, n) for n in found.sources["features.3"]] == both


def circuit_of(model, layer, channel, masks, scores=None, direction=None):
    feature = {"channel": channel} if direction is None else {"name": "mixed-0"}
    manifest = {
        "model": model.name,
        "weights": {"source": "given", "sha256": model.sha256},
        "images": {"source": "array", "resize": None, "number": 2, "digest": ""},
        "feature": {"layer": layer, "position": None, **feature},
        "criterion": "snip",
        "objective": "abs",
        "keep": 0.5,
        "kernels": None,
        "relevant": sum(mask.size for mask in masks.values()),
        "kept": sum(int(mask.sum()) for mask in masks.values()),
        "effective": 0,
        "correlation": 0.5,
        "layers": list(masks),
    }
    return jc.Circuit(masks, manifest, scores=scores, direction=direction)


def random_circuit(model, layer, channel, share, seed, *, scored, direction=None):
    """Masks of the layers before a feature; with scores, the best of them."""
    rng, layers = np.random.default_rng(seed), model.layers
    names = [name for name in layers if layers[name].kind == "conv"]
    names = names[: names.index(layer) + 1]
    scores = {n: rng.random((layers[n].inputs, layers[n].outputs), np.float32) for n in names}
    own = np.zeros(layers[layer].outputs, bool)
    own[channel if direction is None else np.nonzero(direction)[0]] = True
    scores[layer] = scores[layer] * own
    masks = {n: (s > 1 - share) for n, s in scores.items()}
    return circuit_of(model, layer, channel, masks, scores if scored else None, direction)


def drawn(found, kernels):
    """{(layer, i, o)} of the edges on a path."""
    return {(e.layer, e.i, e.o) for e, on in zip(found.edges, found.within(kernels).edges, strict=False) if on}


def effective(model, circuit, masks):
    found = jc.effective_kernels(model, circuit.features, {name: mask[None] for name, mask in masks.items()})
    return {(name, int(i), int(o)) for name, mask in found.items() for i, o in np.argwhere(np.asarray(mask[0]))}


@pytest.mark.parametrize("seed", range(4))
def test_edges_are_the_effective_kernels(small, seed):
    """Found by following nodes here, by gradients of the pinned network there."""
    direction = np.array([0, 1, 0, -2, 0, 0], np.float32) if seed == 3 else None
    circuit = random_circuit(
        small.model, "features.3", 2, (0.5, 0.3, 0.2, 0.3)[seed], seed, scored=False, direction=direction
    )
    found = graph(small.model, circuit, most=10**6)
    assert drawn(found, found.kept) == effective(small.model, circuit, circuit.masks)
    assert not found.scored and found.most == found.kept == circuit.manifest["kept"]
    for e in found.edges:
        layer = small.model.layers[e.layer]
        kernel = np.asarray(layer.weight(small.model.variables))[:, e.i, e.o]
        np.testing.assert_array_equal(e.weights.ravel(), kernel)
        assert e.total == pytest.approx(float(kernel.sum()), rel=1e-5)
        block, channel = found.nodes[e.target]
        assert (found.blocks[block].name, channel) == (e.layer, e.o)
    if direction is not None:
        assert found.block(found.feature).kind == "direction"
        assert {found.nodes[a][1] for a, b in found.links if b == found.feature} <= {1, 3}


def test_levels_are_the_best_kernels(small):
    """Denser and sparser than the circuit: the top kernels of its scores."""
    circuit = random_circuit(small.model, "features.3", 2, 0.4, 7, scored=True)
    found, best = graph(small.model, circuit, most=10**6), ranking(circuit)
    assert found.scored and found.most > found.kept
    every = np.concatenate([s.ravel() for s in circuit.scores.values()])
    for kernels in (found.kept, 30, 60, found.most):
        limit = np.sort(every)[::-1][kernels - 1]
        masks = {name: s >= limit for name, s in circuit.scores.items()}
        assert sum(mask.sum() for mask in masks.values()) == kernels
        for name, mask in best.masks(circuit, kernels).items():
            np.testing.assert_array_equal(mask, masks[name])
        assert drawn(found, kernels) == effective(small.model, circuit, masks)
    few = graph(small.model, circuit, most=50)
    assert few.most == 50 and few.cut and drawn(few, 50) == drawn(found, 50)


def test_scores_that_do_not_rank_the_mask_are_not_levels(small):
    circuit = random_circuit(small.model, "features.3", 2, 0.4, 7, scored=True)
    wrong = jc.Circuit(circuit.masks, circuit.manifest, scores={n: 1 - s for n, s in circuit.scores.items()})
    found = graph(small.model, wrong, most=10**6)
    assert not found.scored and all(e.score is None for e in found.edges)
    assert "only level" in jc.diagram(small.model, wrong).contents["why"]


def test_layers_that_are_not_scored_are_one_node(branches):
    circuit = random_circuit(branches, "top", 1, 1.0, 0, scored=False)
    found = graph(branches, circuit)
    (whole,) = [n for n in range(len(found.nodes)) if found.block(n).whole]
    assert found.block(whole).name == "maps" and len([e for e in found.edges if e.source == whole]) == 3
    assert {b.kind for b in found.blocks} == {INPUT, "layer", "+", "×"}
    for a, b in [*((e.source, e.target) for e in found.edges), *found.links]:
        assert found.depths[found.nodes[a][0]] < found.depths[found.nodes[b][0]]


def test_flow_is_what_lies_between():
    """Against networkx, on random graphs."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        nodes = int(rng.integers(4, 14))
        pairs = sorted({tuple(sorted(rng.choice(nodes, 2, replace=False).tolist())) for _ in range(2 * nodes)})
        inputs, feature = [0, 1], nodes - 1
        plain = networkx.DiGraph(pairs)
        plain.add_nodes_from(range(nodes))
        after = {*inputs}.union(*(networkx.descendants(plain, n) for n in inputs))
        before = {feature} | networkx.ancestors(plain, feature)
        found = flow(pairs, 3, inputs, feature, nodes)
        on = [a in after and b in before for a, b in pairs]
        assert [*found.edges, *found.links] == on
        assert set(np.nonzero(found.nodes)[0]) == (after & before) | {feature}


def test_layout_has_no_overlaps(branches, small):
    for model, layer in ((branches, "top"), (small.model, "features.3")):
        found = graph(model, random_circuit(model, layer, 1, 0.8, 1, scored=True))
        columns = rows(found)
        placed = layout(found, columns, orders(found, columns), found.within(found.kept))
        boxes = [(x, y, placed.sizes[n]) for n, (x, y) in placed.centres.items()]
        for k, (x, y, s) in enumerate(boxes):
            for u, v, t in boxes[:k]:
                assert max(abs(x - u), abs(y - v)) >= (s + t) / 2 - 1e-6
        for (a, b), curve in placed.curves.items():
            assert (np.diff(curve[::3, 0]) > 0).all()
            assert curve[0, 1] == placed.centres[a][1] and curve[-1, 1] == placed.centres[b][1]


class Dense(nn.Module):
    """Every layer reads all before it, as in a DenseNet; and two sums behind one layer."""

    @nn.compact
    def __call__(self, x):
        found = [nn.relu(nn.Conv(2, (1, 1), name="first")(x))]
        for k in range(11):
            y = nn.relu(nn.Conv(2, (1, 1), name=f"in{k}")(jnp.concatenate(found, -1)))
            found.append(nn.relu(nn.Conv(2, (1, 1), name=f"out{k}")(y)))
        a, b, c = (nn.Conv(2, (1, 1), name=name)(found[-1]) for name in "abc")
        return nn.Conv(2, (1, 1), name="last")(a + b + c)


@pytest.fixture(scope="module")
def dense():
    model = jc.Model(Dense(), random_variables(Dense(), (1, 4, 4, 1)), name="dense", input_size=4, channels=1)
    return model, random_circuit(model, "last", 1, 1.0, 1, scored=True)


def test_columns_of_many_rows_stay_in_the_picture(dense):
    found = graph(*dense)
    columns = rows(found)
    assert max(map(len, columns)) > 25, "more than the height has room for"
    placed = layout(found, columns, orders(found, columns), found.within(found.kept))
    assert min(placed.sizes.values()) > 10
    for n, (_, y) in placed.centres.items():
        assert placed.sizes[n] / 2 <= y <= placed.height - placed.sizes[n] / 2
    for curve in placed.curves.values():
        assert (curve[:, 1] >= 0).all() and (curve[:, 1] <= placed.height).all()


def test_nodes_of_grey_images_and_of_two_sums_have_names_of_their_own(dense):
    drawing = jc.diagram(*dense)
    document = json.loads(drawing.to("json"))
    names = [node["id"] for node in document["nodes"]]
    assert len(set(names)) == len(names) == len(drawing.graph.nodes)
    assert {"c+:0", "c+2:1"} <= set(names) and not any(e["source"] == e["target"] for e in document["edges"])
    root = ElementTree.fromstring(drawing.to("svg"))
    assert "R" not in {"".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")}


def test_names_stay_in_their_columns(branches):
    """However long: half of a name and half of its neighbour's fit between two columns, and the outer ones in the
    margins."""
    found = graph(branches, random_circuit(branches, "top", 1, 0.8, 1, scored=True))
    step = gap(rows(found))
    for name in ("top", "layer2.0.downsample.0", "features.denseblock1.denselayer16.conv2"):
        width = LETTER * len(name) * shrunk(name, step)
        assert width < step and margin(["top", name], step) > width / 2
    assert shrunk("features.10", step) == 1


def test_the_order_shortens_edges(small):
    found = graph(small.model, random_circuit(small.model, "features.3", 1, 0.5, 1, scored=True))
    columns = rows(found)
    order, rng = orders(found, columns), np.random.default_rng(0)

    def length(order):
        placed = layout(found, columns, order, found.within(found.kept))
        return sum(abs(placed.centres[e.source][1] - placed.centres[e.target][1])
                   for e, on in zip(found.edges, found.within(found.kept).edges, strict=False) if on)  # fmt: skip

    assert length(order) < np.mean([length(rng.permutation(len(order))) for _ in range(10)])


def test_patches_are_what_the_strongest_positions_see(small):
    """Against PyTorch's outputs of the circuit and the receptive fields."""
    circuit = random_circuit(small.model, "features.3", 2, 0.6, 3, scored=False)
    pixels = np.random.default_rng(5).integers(0, 256, (5, 13, 13, 3), dtype=np.uint8)
    images = ((pixels / 255 - np.array(small.model.mean)) / np.array(small.model.std)).astype(np.float32)
    outputs = with_kernels(small.torch, {n: m.T for n, m in circuit.masks.items()})(images)
    found = top_patches(small.model, circuit, {"features.0": [1, 4], "layer1.conv2": [3]}, images, 3)
    fields = jc.receptive_fields(small.model)
    for (layer, channel), patches in found.items():
        maps = outputs[layer][:, channel].numpy()
        strongest = maps.reshape(len(maps), -1)
        best = np.argsort(-strongest.max(1), kind="stable")[:3]
        for n, patch in zip(best, patches, strict=True):
            h, w = divmod(int(strongest[n].argmax()), maps.shape[2])
            box = fields[layer].box(h, w)
            seen = pixels[n][box]
            side = max(seen.shape[:2])
            assert patch.shape[:2] == (side, side)  # square, with what lies around
            inside = [slice(0, side - k + 1) for k in seen.shape[:2]]
            at = [(a, b) for a in range(inside[0].stop) for b in range(inside[1].stop)]
            assert any((patch[a : a + seen.shape[0], b : b + seen.shape[1]] == seen).all() for a, b in at)


@pytest.mark.parametrize("position", [[1, 2], "argmax"])
def test_a_feature_with_a_position_has_its_patches_there(small, position):
    """ "argmax" is each image's own, in the full network; other channels of the layer are looked at everywhere."""
    circuit = random_circuit(small.model, "features.3", 2, 0.6, 3, scored=False)
    feature = {**circuit.manifest["feature"], "position": position}
    circuit = jc.Circuit(circuit.masks, {**circuit.manifest, "feature": feature})
    images = small.images[:, :, :11]
    maps = with_kernels(small.torch, {n: m.T for n, m in circuit.masks.items()})(images)["features.3"].numpy()
    whole = with_kernels(small.torch, {})(images)["features.3"].numpy()[:, 2]
    fields = jc.receptive_fields(small.model, image_shape=images.shape[1:])["features.3"]
    places = [tuple(position) if position != "argmax" else np.unravel_index(w.argmax(), w.shape) for w in whole]
    found = top_patches(small.model, circuit, {"features.3": [2, 4]}, images, 2)
    pixels = np.clip(np.round(255 * (images * np.array(small.model.std) + np.array(small.model.mean))), 0, 255)
    values = np.array([m[2][place] for m, place in zip(maps, places, strict=True)])
    for n, patch in zip(np.argsort(-values, kind="stable"), found["features.3", 2], strict=False):
        np.testing.assert_array_equal(patch, _cut(pixels[n].astype(np.uint8), fields, *places[n]))
    n = maps[:, 4].max((1, 2)).argmax()
    place = np.unravel_index(maps[n, 4].argmax(), maps.shape[2:])
    np.testing.assert_array_equal(found["features.3", 4][0], _cut(pixels[n].astype(np.uint8), fields, *place))


def test_nodes_carry_pictures_made_in_the_circuit(small):
    """The feature and the channels that the best kernels lead to; not those that show their filter."""
    circuit, images = random_circuit(small.model, "features.3", 2, 0.8, 7, scored=True), small.images[:, :, :11]
    plain = jc.diagram(small.model, circuit, images)
    found = jc.diagram(small.model, circuit, images, pictures="features", made=4)
    scores = {(n, o): circuit.scores[n][i, o] for n, i, o in effective(small.model, circuit, circuit.masks)}
    for n, i, o in effective(small.model, circuit, circuit.masks):
        scores[n, o] = max(scores[n, o], circuit.scores[n][i, o])
    best = sorted((key for key in scores if key[0] != "features.0"), key=lambda key: -scores[key])
    best = [("features.3", 2), *(key for key in best if key != ("features.3", 2))]
    assert len(best) > 4 and f"for 4 of its {len(best)} channels, those with the best kernels" in found.said
    assert found.pictures.keys() == plain.pictures.keys() >= set(best)
    for key, strip in found.pictures.items():
        if key not in best[:4]:
            np.testing.assert_array_equal(strip, plain.pictures[key])
            continue
        made = jc.visualise(small.model, jc.Features(key[0], channels=[key[1]]), masks=circuit.masks).pictures[0]
        first = Image.fromarray(made).resize((56, 56), Image.Resampling.NEAREST)
        assert np.abs(strip[:, :56].astype(int) - np.asarray(first)).max() <= 1  # alone or with others
        np.testing.assert_array_equal(strip[:, 56:], plain.pictures[key])
    alone = jc.diagram(small.model, circuit, pictures="features", made=len(best))
    assert f"for {len(best)} of its {len(best)} channels;" in alone.said and "patches" not in alone.said
    assert all(alone.pictures[key].shape == (56, 56, 3) for key in best)
    none = jc.diagram(small.model, circuit, images, pictures="none")
    assert not none.pictures and not none.said


def test_what_cannot_be_driven_has_no_picture():
    """Behind a ReLU that noise leaves off there is no gradient: no grey square, and no words that say otherwise."""

    class Off(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(2, (1, 1), bias_init=nn.initializers.constant(-100.0), name="low")(x)
            return nn.Conv(1, (1, 1), name="top")(nn.relu(x))

    model = jc.Model(Off(), Off().init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))), name="off", input_size=64)
    circuit = random_circuit(model, "top", 0, 1.0, 0, scored=True)
    found = jc.diagram(model, circuit, pictures="features")
    assert found.pictures.keys() == {("low", 0), ("low", 1)}
    assert "for 2 of its 3 channels (not for 1 that" in found.said
    assert "<figure>" not in jc.report(model, [circuit], pictures="features")
    images = np.random.default_rng(0).standard_normal((2, 64, 64, 3), np.float32)
    text = jc.report(model, [circuit], images, pictures="features")
    assert text.count("<figure>") == 2 and "(the first picture" not in text


def test_a_direction_carries_a_picture(small):
    direction = np.array([0, 1, 0, -2, 0, 0], np.float32)
    circuit = random_circuit(small.model, "features.3", 0, 0.6, 3, scored=False, direction=direction)
    found = jc.diagram(small.model, circuit, pictures="features", made=1)
    made = jc.visualise(small.model, circuit.features, masks=circuit.masks).pictures[0]
    first = Image.fromarray(made).resize((56, 56), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(found.pictures["features.3", -1], first)


@pytest.fixture(scope="module")
def picture(small):
    circuit = random_circuit(small.model, "features.3", 2, 0.4, 7, scored=True)
    return jc.diagram(small.model, circuit, small.images[:, :, :11])


def test_svg_png_and_pdf(picture):
    root = ElementTree.fromstring(picture.to("svg"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"features.0", "layer1.conv1", "features.3", "excitatory", "+"} <= set(words)
    assert any(word.startswith("small features.3:2: snip, keep 0.5, r = 0.500") for word in words)
    colours = np.asarray(Image.open(io.BytesIO(picture.to("png"))).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 200
    assert picture.to("pdf").startswith(b"%PDF")


def test_graphml_and_json_are_the_effective_circuit(picture, small):
    expected = effective(small.model, picture.circuit, picture.circuit.masks)
    read = networkx.read_graphml(io.BytesIO(picture.to("graphml")), force_multigraph=True)
    document = json.loads(picture.to("json"))
    linked = networkx.node_link_graph(document, edges="edges")
    for found in (read, linked):
        kernels = [values for *_, values in found.edges(data=True) if values["kind"] == "kernel"]
        assert {(v["layer"], v["i"], v["o"]) for v in kernels} == expected
        assert all(
            v["score"] == pytest.approx(float(picture.circuit.scores[v["layer"]][v["i"], v["o"]])) for v in kernels
        )
        assert found.nodes["features.3:2"]["kind"] == "layer" and found.graph["feature"] == "features.3:2"
    assert document["graph"]["manifest"] == picture.circuit.manifest
    b, values = next((b, v) for _, b, v in linked.edges(data=True) if v["kind"] == "kernel")
    kernel = np.asarray(small.model.layers[values["layer"]].weight(small.model.variables))[:, values["i"], values["o"]]
    np.testing.assert_allclose(np.ravel(values["weights"]), kernel, rtol=1e-6)
    assert b == f"{values['layer']}:{values['o']}"


def test_bad_input_is_one_sentence(picture, small, branches, tmp_path):
    with pytest.raises(jc.InputError, match=r"not one of branches's: no layer 'features\.0'"):
        jc.diagram(branches, picture.circuit)
    masks = {"stem": np.ones((3, 5), bool)}
    with pytest.raises(jc.InputError, match=r"its mask of 'stem' is \(3, 5\), the layer \(3, 4\)"):
        jc.diagram(branches, circuit_of(branches, "stem", 0, masks))
    with pytest.raises(jc.InputError, match="0 kernels were asked for"):
        jc.diagram(small.model, picture.circuit, most=0)
    with pytest.raises(jc.InputError, match="kind 'photos'; expected one of patches, features, none"):
        jc.diagram(small.model, picture.circuit, pictures="photos")
    with pytest.raises(jc.InputError, match="pictures of 0 channels"):
        jc.report(small.model, [picture.circuit], pictures="features", made=0)
    with pytest.raises(jc.InputError, match="cannot be written as 'gif'; expected one of html, svg, png"):
        picture.save(tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


def test_alexnet_draws_two_thousand_kernels_in_a_small_page(alexnet):
    """The pretrained network: a real layer's circuit, its page under 5 MB."""
    images = np.random.default_rng(0).standard_normal((2, 224, 224, 3), np.float32)
    feature = jc.Features("features.6", channels=[56])
    (circuit,) = jc.extract(alexnet, images, feature, criterion="magnitude", kernels=2000, with_scores=True)
    found = jc.diagram(alexnet, circuit, images)
    assert found.graph.scored and found.graph.most == 2000
    assert found.graph.within(2000).edges.sum() == circuit.manifest["effective"] > 100
    assert len(found.to("html")) < 5e6
    assert [b.name for b in found.graph.blocks] == [INPUT, "features.0", "features.3", "features.6"]
