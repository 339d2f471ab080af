"""The study of learned circuits: r of parts is r of the whole, the page shows what the JSON says."""

import json

import pytest
from click.testing import CliRunner

import jaxcircuits as jc
from benchmarks import learned, learned_page


def test_r_of_parts_is_that_of_the_whole(small):
    features = jc.Features("features.3", [4, 1])
    scores = jc.score(small.model, small.images, features, criterion="snip")
    masks = [jc.top_kernels(scores, keep=keep) for keep in (0.95, 0.9)]
    whole = jc.evaluate(small.model, small.images, features, masks).correlation()
    parts = [jc.evaluate(small.model, small.images[some], features, masks) for some in (slice(3), slice(3, None))]
    for f in range(2):
        rows = [learned.sums(part.moments, f) for part in parts]
        for k in range(2):
            assert learned.correlation([row[k] for row in rows]) == pytest.approx(whole[f, k], abs=1e-5)


def test_features_are_drawn_by_the_seed(alexnet):
    drawn = learned.drawn(alexnet, 0, 4)
    assert drawn == learned.drawn(alexnet, 0, 4) != learned.drawn(alexnet, 1, 4)
    assert all(len(set(channels)) == 4 and max(channels) < 384 for channels in drawn.values())


def row(criterion: str, fold: int, r: float, photographs: int = 0) -> dict:
    sums = [[100.0, 0.0, 0.0, 1.0, 1.0, value] for value in (r, r, r, r / 2)]
    found = {"criterion": criterion, "fold": fold, "photographs": photographs, "feature": "features.6:3"}
    return found | {"seconds": 2.0, "seen": [0.9] * 4, "sums": sums}


@pytest.fixture
def document() -> dict:
    rows = [row("snip", fold, 0.6) for fold in (0, 1)] + [row("learned", fold, r) for fold, r in ((0, 0.8), (1, 0.9))]
    rows += [row("learned", 0, 0.5, 3)]
    versions = {"hardware": {"cpu": "A CPU", "cores": 2}, "versions": {"jax": "0.10.2"}}
    document = {"seed": 0, "folds": 2, "keeps": [0.2, 0.1, 0.05, 0.01], "rows": rows, **versions}
    return document | {"summary": learned.summary(rows)}


def test_page_says_what_the_rows_say(document):
    text = learned_page.markdown(document)
    assert "| snip | 0.600 | 0.600 | 0.600 | 0.300 | 2.0 |" in text
    assert "| learned | 0.850 | 0.850 | 0.850 | 0.425 | 2.0 |" in text
    assert "keep 0.05: 0.850, reached (0.80); mean r at keep 0.01: 0.425, not reached (0.65)" in text
    assert text.startswith("1 feature, each on 2 of 2 folds.")
    assert "Goal: The study is not complete. Of features.6 alone, without actgrad and force: mean r" in text
    assert "in 4 of 4 cells" in text and "| features.6:3 | 0.60 / 0.85 |" in text
    assert "| 3 | 0.500 / 0.900 |" in text and "| 6 | 0.800 / 0.900 |" in text
    document["summary"][1]["unseen"][0] = 0.57
    text = learned_page.markdown(document)
    assert "in 3 of 4 cells" in text and "| features.6:3 | 0.60 / **0.57** |" in text


def test_page_shows_its_json():
    text = (learned_page.ROOT / learned_page.PAGE).read_text()
    found = learned_page.BLOCK.search(text)
    assert found and found[0] == learned_page.block(found["file"])
    document = json.loads((learned_page.ROOT / found["file"]).read_text())
    assert document["summary"] == learned.summary(document["rows"])


def test_a_file_to_go_on_with_is_asked_for():
    result = CliRunner().invoke(learned.main, [])
    assert result.exit_code == 2 and "--out" in result.output
