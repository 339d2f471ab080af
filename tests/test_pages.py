"""Pages in a real headless Chromium: they load from disk in silence, and hover, click, slider and keys do what they
say. Names of layers and files are never markup."""

import io
import json
import re

import flax.linen as nn
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import jaxcircuits as jc
from jaxcircuits.cli import main
from jaxcircuits.diagram.layout import layout
from jaxcircuits.pages import data_uri, inert, render, table
from jaxcircuits.report import entry
from tests.test_diagram import Dense, circuit_of, random_circuit
from tests.twins import random_variables

EVIL = "</script><script>window.hit=1;alert(1)</script><img src=x onerror=alert(2)>{{7*7}}"


@pytest.fixture(scope="module")
def drawing(small):
    circuit = random_circuit(small.model, "features.3", 2, 0.4, 7, scored=True)
    return jc.diagram(small.model, circuit, small.images[:, :, :11])


@pytest.fixture(scope="module")
def html(drawing):
    return drawing.to("html").decode()


def shown(page, what):
    return page.locator(f"{what}:not([hidden])")


def spot(page, edge):
    """The middle of an edge on the screen."""
    return page.evaluate(
        """(p) => {
            const path = diagram.paths[p], at = path.getPointAtLength(path.getTotalLength() / 2);
            const to = path.getScreenCTM();
            return [at.x * to.a + to.e, at.y * to.d + to.f];
        }""",
        edge,
    )


def colours(page, element=None):
    png = (element or page).screenshot()
    return len(np.unique(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3), axis=0))


def test_what_is_drawn_is_the_effective_circuit(opened, html, drawing):
    page = opened(html)
    found = drawing.graph.within(drawing.graph.kept)
    assert shown(page, ".edge:not(.link)").count() == int(found.edges.sum())
    assert shown(page, ".edge.link").count() == int(found.links.sum()) > 0
    assert shown(page, ".node").count() == int(found.nodes.sum())
    for k in np.nonzero(found.edges)[0][:20]:
        sign = "more" if drawing.graph.edges[k].total > 0 else "less"
        assert sign in page.locator(f'[data-edge="{k}"]').get_attribute("class").split()
    widths = [
        float(page.locator(f'[data-edge="{k}"]').evaluate("e => e.style.getPropertyValue('--w')").removesuffix("px"))
        for k in np.nonzero(found.edges)[0]
    ]
    assert widths == sorted(widths, reverse=True) and widths[0] > widths[-1]  # the best are the widest
    for k in (int(np.nonzero(found.edges)[0][0]), int(np.nonzero(found.edges)[0][-1])):
        weights = page.evaluate(
            "e => { const l = diagram.data.edges.layer[e], [, h, w] = diagram.data.layers[l];"
            "const at = diagram.graph.place[e] * h * w; return [...diagram.weights[l].slice(at, at + h * w)] }",
            k,
        )
        exact = drawing.graph.edges[k].weights.ravel()
        np.testing.assert_allclose(np.array(weights) / 127 * np.abs(exact).max(), exact, atol=np.abs(exact).max() / 250)
    assert colours(page, page.locator(".stage")) > 100


def test_nodes_stand_where_the_figure_has_them(opened, drawing):
    """Also in columns of more rows than have room."""
    model = jc.Model(Dense(), random_variables(Dense(), (1, 4, 4, 1)), name="dense", input_size=4, channels=1)
    many = jc.diagram(model, random_circuit(model, "last", 1, 1.0, 1, scored=True))
    for one in (drawing, many):
        page = opened(one.to("html").decode())
        places = page.evaluate("({ x: [...diagram.places.x], y: [...diagram.places.y], s: [...diagram.places.size] })")
        placed = layout(one.graph, one.columns, one.order, one.graph.within(one.graph.kept))
        assert len(placed.centres) > 10
        for n, (x, y) in placed.centres.items():
            found = places["x"][n], places["y"][n], places["s"][n]
            assert found == pytest.approx((x, y, placed.sizes[n]), abs=1e-6)
    assert page.evaluate("diagram.channel(0)") == "channel 0", "a grey image has no colours"


def test_nothing_overlaps(opened, html):
    page = opened(html)
    of = "[...document.querySelectorAll('{}')].map(e => e.getBoundingClientRect().toJSON())"
    boxes = page.evaluate(of.format(".node:not([hidden]) rect"))
    for k, a in enumerate(boxes):
        for b in boxes[:k]:
            apart = a["left"] >= b["right"] - 1 or b["left"] >= a["right"] - 1
            assert apart or a["top"] >= b["bottom"] - 1 or b["top"] >= a["bottom"] - 1
    headers = page.evaluate(of.format(".top"))
    for a in headers:
        for b in boxes:
            apart = a["left"] >= b["right"] or b["left"] >= a["right"]
            assert apart or a["top"] >= b["bottom"] - 1 or b["top"] >= a["bottom"] - 1


def test_slider_shows_more_and_less(opened, html, drawing):
    page = opened(html)
    counts = {}
    for kernels in (1, 12, 60, drawing.graph.most):
        value = round(1000 * np.log(kernels) / np.log(drawing.graph.most))
        page.locator("input.keep").evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input')) }", value)
        there = int(page.locator(".stage").get_attribute("data-kernels"))
        assert abs(there - kernels) <= max(1, kernels * 0.01)
        found = drawing.graph.within(there)
        counts[there] = shown(page, ".edge:not(.link)").count()
        assert counts[there] == int(found.edges.sum())
        assert shown(page, ".node").count() == int(found.nodes.sum())
        assert f"{there:,} kernels, {counts[there]:,} on a path" in page.locator("output.level").inner_text()
    assert len(set(counts.values())) >= 3
    page.locator("button.own").click()
    assert page.locator(".stage").get_attribute("data-kernels") == str(drawing.graph.kept)
    page.locator("input.keep").focus()
    page.keyboard.press("ArrowLeft")
    assert int(page.locator(".stage").get_attribute("data-kernels")) < drawing.graph.kept


def test_hover_shows_layer_channel_score_and_kernel(opened, html, drawing):
    page, tip = opened(html), None
    tip = page.locator(".tip")
    assert tip.is_hidden()
    page.locator('.node[aria-label^="features.3, channel 2,"]').hover()
    assert "features.3" in tip.inner_text() and "channel 2: the feature" in tip.inner_text()
    assert "score" in tip.inner_text() and tip.locator("canvas").count() > 0 and tip.locator("img").count() == 1
    best = int(np.nonzero(drawing.graph.within(drawing.graph.kept).edges)[0][0])
    edge = drawing.graph.edges[best]
    page.evaluate("p => diagram.isolate({edge: p})", best)  # nothing else lies there then
    page.mouse.move(*spot(page, best))
    words = tip.inner_text()
    assert f"{edge.layer}: {edge.i} → {edge.o}" in words and f"score {float(f'{edge.score:.3g}'):g}" in words
    assert ("excitatory" if edge.total > 0 else "inhibitory") in words
    canvas = tip.locator("canvas")
    assert [int(canvas.get_attribute(side)) for side in ("height", "width")] == list(edge.weights.shape)
    strongest = np.abs(edge.weights).ravel().argmax()
    pixel = canvas.evaluate(
        "(c, k) => [...c.getContext('2d').getImageData(k % c.width, Math.floor(k / c.width), 1, 1).data]",
        int(strongest),
    )
    red, _, blue, _ = pixel
    assert (red > blue) == (edge.weights.ravel()[strongest] > 0)
    page.mouse.move(3, 3)
    assert tip.is_hidden()


def through(graph, start, *, node):
    """The edges and links on paths through a node or an edge, by plain recursion."""
    found = graph.within(graph.kept)
    pairs = [(e.source, e.target) for e in graph.edges[: len(found.edges)]]
    alive = {k for k, on in enumerate(found.edges) if on}
    alive |= {len(graph.edges) + k for k, on in enumerate(found.links) if on}
    ends = dict(enumerate(pairs)) | {len(graph.edges) + k: pair for k, pair in enumerate(graph.links)}
    kept = set() if node else {start}

    def follow(n, side):
        for p in alive:
            if ends[p][side] == n:
                kept.add(p)
                follow(ends[p][1 - side], side)

    follow(start if node else ends[start][0], 1)
    follow(start if node else ends[start][1], 0)
    return kept


def isolated(page):
    return {int(e) for e in page.evaluate("[...document.querySelectorAll('.edge.on')].map(e => e.dataset.edge)")}


def test_clicks_isolate_what_flows_through(opened, html, drawing):
    page, graph = opened(html), drawing.graph
    found = graph.within(graph.kept)
    node = next(n for n in np.nonzero(found.nodes)[0] if graph.block(n).name == "layer1.conv1")
    page.locator(f'[data-node="{node}"]').click()
    assert isolated(page) == through(graph, int(node), node=True)
    assert page.locator(".world.isolated").count() == 1
    assert page.locator(f'[data-node="{node}"]').get_attribute("aria-pressed") == "true"
    assert not page.locator(".edge:not(.on)").first.is_visible()
    page.locator(".panel button.kernel").first.click()  # the same for a kernel, from the list
    (edge,) = page.evaluate("[...document.querySelectorAll('.edge.chosen')].map(e => +e.dataset.edge)")
    assert isolated(page) == through(graph, edge, node=False)
    page.mouse.click(*spot(page, edge))
    assert isolated(page) == through(graph, edge, node=False)
    page.get_by_label("Clear the selection").click()
    assert not isolated(page) and page.locator(".world.isolated").count() == 0


def test_keys(opened, html, drawing):
    page, graph = opened(html), drawing.graph
    page.locator('button:text-is("SVG")').focus()
    page.keyboard.press("Tab")
    focused = lambda: page.evaluate("document.activeElement.dataset.node ?? null")  # noqa: E731
    assert focused() is not None and graph.block(int(focused())).kind == "input"
    first = focused()
    page.keyboard.press("Tab")
    assert focused() not in (None, first)
    style = "getComputedStyle(document.activeElement.querySelector('rect')).stroke"
    accent = page.evaluate(style)
    page.keyboard.press("ArrowRight")
    here = int(focused())
    assert graph.block(here).name == "features.0" and page.evaluate(style) == accent  # the focus is seen
    page.keyboard.press("ArrowDown")
    assert graph.block(int(focused())).name == "features.0" and int(focused()) != here
    page.keyboard.press("ArrowUp")
    assert int(focused()) == here
    page.keyboard.press("Enter")
    assert isolated(page) == through(graph, here, node=True)
    page.keyboard.press("Escape")
    assert not isolated(page) and int(focused()) == here
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    assert int(focused()) == graph.feature
    page.keyboard.press("ArrowLeft")
    assert any(e.target == graph.feature and e.source == int(focused()) for e in graph.edges)
    assert "channel" in page.evaluate("document.activeElement.getAttribute('aria-label')")


def test_search(opened, html):
    page = opened(html)
    search = page.get_by_label("Search channels")
    search.fill("features.3:2")
    assert page.locator(".node.found").count() == 1 and page.locator("output.matches").inner_text() == "1 found"
    search.press("Enter")
    assert "features.3" in page.locator(".panel").inner_text() and isolated(page)
    search.press("Escape")
    assert page.locator(".node.found").count() == 0 and not isolated(page)
    search.fill("3")
    found = page.evaluate("[...document.querySelectorAll('.node.found')].map(e => e.getAttribute('aria-label'))")
    assert found and all(", channel 3," in name for name in found)
    search.fill("nowhere:1")
    assert page.locator("output.matches").inner_text() == "0 found"


def test_zoom_pan_and_theme(opened, html):
    page = opened(html)
    transform = lambda: page.locator(".world").get_attribute("transform")  # noqa: E731
    fitted = transform()
    page.mouse.move(500, 400)
    page.mouse.wheel(0, -300)
    zoomed = transform()
    assert float(zoomed.partition("scale(")[2][:-1]) > float(fitted.partition("scale(")[2][:-1])
    page.mouse.down()
    page.mouse.move(560, 430, steps=3)
    page.mouse.up()
    assert transform() != zoomed and not isolated(page)
    page.get_by_label("Show everything").click()
    assert transform() == fitted
    back = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    light = back()
    page.get_by_label("Light or dark").click()
    assert back() != light and sum(map(int, re.findall(r"\d+", back()))) < 150
    page.get_by_label("Light or dark").click()
    assert back() == light
    page.emulate_media(color_scheme="dark")
    page.evaluate("localStorage.clear(); delete document.documentElement.dataset.theme")
    assert back() != light


def test_saved_svg_is_what_is_shown(opened, html):
    page = opened(html)
    with page.expect_download() as download:
        page.locator('button:text-is("SVG")').click()
    text = download.value.path().read_text()
    assert download.value.suggested_filename == "features.3_2.svg"
    assert text.count("<path") == shown(page, ".edge").count() and "#d55e00" in text


def test_without_scores_there_is_one_level(opened, small):
    circuit = random_circuit(small.model, "features.3", 2, 0.4, 7, scored=False)
    page = opened(jc.diagram(small.model, circuit).to("html").decode())
    assert page.locator("input.keep").is_disabled()
    assert "saved without scores" in page.locator(".panel").inner_text()
    assert shown(page, ".edge").count() > 10


def test_no_path_is_said(opened, small):
    circuit = random_circuit(small.model, "features.3", 2, 0.4, 7, scored=True)
    none = {**circuit.masks, "features.0": np.zeros_like(circuit.masks["features.0"])}
    page = opened(jc.diagram(small.model, circuit_of(small.model, "features.3", 2, none)).to("html").decode())
    assert shown(page, ".edge").count() == 0 and shown(page, ".node").count() == 1
    assert "No path leads from the pixels to the feature" in page.locator(".panel").inner_text()


class Named(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Conv(2, (1, 1), name="last")(nn.Conv(3, (3, 3), name=EVIL)(x))


def test_names_are_never_markup(opened):
    model = jc.Model(Named(), random_variables(Named(), (1, 6, 6, 3)), name=EVIL, input_size=6)
    circuit = random_circuit(model, "last", 1, 1.0, 0, scored=True)
    circuit.manifest["images"]["source"] = circuit.manifest["weights"]["source"] = EVIL
    images = np.random.default_rng(0).standard_normal((2, 6, 6, 3), np.float32)
    drawing = jc.diagram(model, circuit, images)
    for text in (drawing.to("html").decode(), jc.report(model, [circuit, circuit], images)):
        page = opened(text)
        assert page.evaluate("window.hit") is None
        assert page.locator(f"text={EVIL[:20]}").count() > 0
        assert page.locator("img[src=x]").count() == 0 and "{{7*7}}" in page.content()
        page.locator(".node").nth(4).hover()
    svg = drawing.to("svg").decode()
    assert "<script" not in svg and "&lt;script&gt;" in svg
    drawing.to("graphml")


def test_a_script_that_escaping_missed_would_not_run(opened, html):
    """The page's policy admits its own scripts only. Chromium says so on its console."""
    page = opened(html)
    opened.expected = "Content Security Policy"
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hit = 1'}))"
    )
    assert page.evaluate("window.hit") is None


def test_report(opened, small):
    images = small.images[:, :, :11]
    circuits = [random_circuit(small.model, "features.3", c, 0.5, c, scored=True) for c in (2, 4)]
    text = jc.report(small.model, circuits, images, title="Two & more")
    page = opened(text)
    assert page.title() == "Two & more" and page.locator(".entry").count() == 2
    assert [link.inner_text() for link in page.locator(".sums a").all()] == ["small features.3:2", "small features.3:4"]
    for k, circuit in enumerate(circuits):
        entry = page.locator(".entry").nth(k)
        assert entry.locator(".node:not([hidden])").count() > 5 and entry.locator("figure img").count() == 2
        effective = jc.effective_kernels(small.model, circuit.features, {n: m[None] for n, m in circuit.masks.items()})
        for name, mask in circuit.masks.items():
            cells = entry.locator(f".part tr:has(td:text-is('{name}')) td").all_inner_texts()
            assert [int(c.replace(",", "")) for c in cells[2:4]] == [mask.sum(), np.asarray(effective[name]).sum()]
        dots = entry.locator(".chart .dot title").all_text_contents()
        own = entry.locator(".chart .dot.own title").text_content()
        masks = {n: m[None] for n, m in circuit.masks.items()}
        r = float(jc.correlation(small.model, images, circuit.features, masks)[0])
        assert own.endswith(f"{circuit.manifest['kept']} kernels: r = {r:.3f}") and len(dots) >= 3
        assert dots[-1].endswith("r = 1.000")
        entry.locator("summary").click()
        assert "snip" in entry.locator(".manifest").inner_text()
    assert colours(page) > 100
    first = page.locator(".entry").first
    first.locator(".node:not([hidden])").nth(5).click()
    assert first.locator(".edge.on").count() and not page.locator(".entry").nth(1).locator(".edge.on").count()


def test_a_reports_curve_of_filters_is_that_of_their_scores(small):
    features, keep = jc.Features("layer1.conv2", [3]), [0.5, 1.0]
    options = {"granularity": "filter", "keep": 0.3, "with_scores": True}
    (circuit,) = jc.extract(small.model, small.images, features, **options)
    curve = entry(small.model, circuit, small.images, pictures="none")["curve"]
    scores = jc.score(small.model, small.images, features, granularity="filter")
    number = sum(int(np.asarray(mask[0]).any(0).sum()) for mask in scores.relevant.values())
    wanted = jc.curve(small.model, small.images, features, scores, keeps=keep)[0]
    for fraction, r in zip(keep, wanted, strict=True):
        near = min(curve["points"], key=lambda point: abs(point[0] - int(fraction * number + 0.5) / number))
        assert near[0] == pytest.approx(int(fraction * number + 0.5) / number)
        assert near[2] == pytest.approx(r, abs=1e-6)
    kept = {name for name, count, _ in curve["points"] if count == circuit.manifest["kept"]}
    assert kept == {int(0.3 * number + 0.5) / number}


def test_a_reports_own_r_is_that_of_its_own_means(small):
    """On other images than those that its means are of."""
    (circuit,) = jc.extract(
        small.model, small.images, jc.Features("features.3", [1]), keep=0.3, ablation="mean", with_scores=True
    )
    others = np.random.default_rng(5).standard_normal((4, 13, 11, 3), np.float32)
    curve = entry(small.model, circuit, others, pictures="none")["curve"]
    (own,) = [r for _, count, r in curve["points"] if count == circuit.manifest["kept"]]
    masks, offsets = ({name: a[None] for name, a in arrays.items()} for arrays in (circuit.masks, circuit.offsets))
    asked = {"ablation": "mean", "offsets": offsets}
    expected = jc.correlation(small.model, others, circuit.features, masks, **asked)[0]
    assert own == pytest.approx(expected, abs=1e-6)
    assert own != pytest.approx(
        jc.correlation(small.model, others, circuit.features, masks, ablation="mean")[0], abs=1e-4
    )


def test_a_report_with_pictures_that_are_made(opened, small):
    circuit = random_circuit(small.model, "features.3", 2, 0.9, 2, scored=True)
    page = opened(jc.report(small.model, [circuit], pictures="features", made=1))
    captions = page.locator("figcaption").all_inner_texts()
    assert [words.partition(" (")[0] for words in captions] == ["in the full network", "in the circuit"]
    assert all("made by gradient ascent" in words for words in captions)
    first, second = (page.locator("figure img").nth(k).get_attribute("src") for k in (0, 1))
    assert first != second
    assert not opened(jc.report(small.model, [circuit], pictures="none")).locator("img, image").count()


def test_long_names_are_within_the_stage(opened):
    """Over the last column, and over columns side by side."""
    name = "features.denseblock1.denselayer16.conv2"

    class Long(nn.Module):
        @nn.compact
        def __call__(self, x):
            for k in range(7):
                x = nn.relu(nn.Conv(3, (1, 1), name=f"{name}.{k}")(x))
            return x

    model = jc.Model(Long(), random_variables(Long(), (1, 8, 8, 3)), name="long", input_size=8)
    page = opened(jc.diagram(model, random_circuit(model, f"{name}.6", 1, 1, 1, scored=True)).to("html").decode())
    ends = page.locator(".top .name").evaluate_all(
        """names => names.map((name) => {
            const box = name.getBBox(), to = name.getScreenCTM();
            return [box.x * to.a + to.e, (box.x + box.width) * to.a + to.e];
        })"""
    )
    stage = page.locator(".stage").bounding_box()
    assert len(ends) == 8 and stage is not None
    along = [stage["x"], *(end for pair in ends for end in pair), stage["x"] + stage["width"]]
    assert along == sorted(along)


def test_commands(opened, networks_once, tmp_path, monkeypatch):
    """The files that `diagram` and `report` write, and the sentences that they end in."""
    networks_once(monkeypatch)
    monkeypatch.chdir(tmp_path)
    np.save("two.npy", np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8))
    model = jc.load("alexnet")
    images = jc.read_images("two.npy", model)
    feature = jc.Features("features.3", channels=[7])
    (circuit,) = jc.extract(model, images, feature, criterion="magnitude", keep=0.9, with_scores=True)
    circuit.save(f"{circuit.stem}.safetensors")

    def run(*arguments, code=0):
        before = sorted(tmp_path.rglob("*"))
        result = CliRunner().invoke(main, list(arguments))
        assert result.exit_code == code, (result.output, result.exception)
        assert code == 0 or (sorted(tmp_path.rglob("*")) == before and "Traceback" not in result.output)
        return result

    file = f"{circuit.stem}.safetensors"
    done = run("diagram", file, "--out", "out", "--format", "html,svg,json", "--patches", "2", "--json")
    written = [f"out/{circuit.stem}.{kind}" for kind in ("html", "svg", "json")]
    assert json.loads(done.stdout) == {"files": written}
    page = opened((tmp_path / written[0]).read_text())
    assert shown(page, ".edge").count() == circuit.manifest["effective"]
    assert run("report", file, "--out", "out").stdout == f"out/{circuit.stem}.report.html\n"
    text = (tmp_path / "out" / f"{circuit.stem}.report.html").read_text()
    assert circuit.manifest["weights"]["sha256"] in text and "two.npy" in text
    run("diagram", file, "--out", "made", "--format", "html", "--pictures", "features", "--made", "1", "--patches", "0")
    made = (tmp_path / "made" / f"{circuit.stem}.html").read_text()
    assert re.search("made by gradient ascent within this circuit for 1 of its 1 channel[.;]", made)
    assert run("report", file, "--out", "out", "--pictures", "none").exit_code == 0
    assert "data:image" not in (tmp_path / "out" / f"{circuit.stem}.report.html").read_text()
    assert "'gif' is none of html, svg, png" in run("diagram", file, "--format", "html,gif", code=2).stderr
    assert "two circuits would be drawn to the same" in run("diagram", file, f"./{file}", code=2).stderr
    np.save("two.npy", np.zeros((2, 224, 224, 3), np.uint8))
    assert "no longer the circuit's" in run("diagram", file, "--out", "out", code=2).stderr
    assert "cannot be read" in run("report", "nowhere.safetensors", code=2).stderr


def test_pages_alone(opened):
    """What rooms with pages of their own rely on."""
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    page = opened(render("base.html", package="jaxcircuits.pages", title=EVIL, data={EVIL: [EVIL, data_uri(image)]}))
    assert page.title() == EVIL and page.locator("h1").inner_text() == EVIL
    assert page.evaluate("page.data") == {EVIL: [EVIL, data_uri(image)]}
    page.evaluate(
        "document.querySelector('main').append(page.make('p', {title: 'x'}, page.data[Object.keys(page.data)[0]][0]))"
    )
    assert page.locator("main p").inner_text() == EVIL
    assert json.loads(inert({"a": "<&>'\u2028"})) == {"a": "<&>'\u2028"} and "<" not in inert("<")
    assert table({"a": {"b": 1, "c": [1, 2]}, "d": None}) == [("a.b", "1"), ("a.c", "1, 2"), ("d", "")]
