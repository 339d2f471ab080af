"""The README's figures from JSON: `python -m benchmarks.report benchmarks/results/NAME.json ...`.

The page on speed has the same, and others. They stand between two comments, the first of which names the files:

    <!-- benchmarks: benchmarks/results/NAME.json -->
    <!-- /benchmarks -->
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks import plots

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"<!-- benchmarks(?:: (?P<files>[^>]*?))? -->\n.*?<!-- /benchmarks -->", re.DOTALL)
PAGES = ("README.md", "docs/speed.md")  # the first block of each shows the same files
HEADER = ("case", "jaxcircuits", "reference", "strong", "GFLOP/s", "of matrix rate", "peak memory", "compiling")

PICTURES = ("feature", "steps", "jaxcircuits", "Lucent", "its value: jaxcircuits", "Lucent")

Document = dict[str, Any]


def rows(document: Document) -> list[list[str]]:
    """The table's cells, one row a case, as `HEADER` names them."""
    result = []
    for record in document["cases"]:
        ratio = record["ratio"]
        result.append(
            [
                record["case"],
                f"{record['milliseconds']['jaxcircuits']:.3g} ms",
                *(f"{ratio[name]:.3g} x" if name in ratio else "" for name in ("reference", "strong")),
                f"{record['gigaflops_a_second']:.0f}",
                f"{record['share_of_matrix_rate']:.0%}",
                f"{record['peak_megabytes']['jaxcircuits']:.0f} MB",
                f"{record['compile_seconds']:.1f} s",
            ]
        )
    return result


def pictures(document: Document) -> list[list[str]]:
    """The cells of pictures made by gradient ascent, one row a feature, as `PICTURES` names them."""
    return [
        [
            record["feature"],
            str(record["steps"]),
            *(f"{seconds:.1f} s" for seconds in record["seconds"]),
            *(f"{record[which][0]:.0f}" for which in ("jaxcircuits", "lucent")),
        ]
        for record in document["rows"]
    ]


def programs(document: Document) -> list[str]:
    """A sentence for start-up and one for conversion."""
    return [
        f"{record['program']}: {record['seconds']['jaxcircuits']:.2g} s"
        f" (PyTorch, a file of the same weights read: {record['seconds']['torch']:.2g} s)"
        for record in document.get("programs", [])
    ]


def markdown(document: Document, picture: str) -> str:
    """What stands on a page for one file; `picture` is the plot's path there."""
    hardware = document["hardware"]
    machine = f"{hardware['cpu']}, {hardware['cores']} cores"
    if devices := sorted(set(hardware["devices"]) - {"cpu"}):
        machine = f"{', '.join(devices)}; {machine}"
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    if document["kind"] == "visualisation":
        lines = [_row(PICTURES), _row(["---"] * len(PICTURES)), *map(_row, pictures(document))]
        return "\n".join([*lines, "", f"{machine}; {versions}."])
    scaling = document["kind"] == "scaling"
    what = "Time and memory over the number of features" if scaling else "How many times as long PyTorch takes"
    lines = [f"![{what}]({picture})", ""]
    if not scaling:
        lines += [_row(HEADER), _row(["---"] * len(HEADER)), *map(_row, rows(document)), ""]
        lines += [f"{sentence}.\n" for sentence in programs(document)]
    rounds = "one round" if document["rounds"] == 1 else f"medians of {document['rounds']} rounds"
    rate = f"matrix products: {document['matrix_gigaflops_a_second']:.0f} GFLOP/s"
    lines.append(f"{machine}; {rate}; {versions}; {rounds}.")
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def picture(file: str, page: str = PAGES[0]) -> str:
    """Where the plot of a JSON file stands, seen from a page."""
    return os.path.relpath(f"docs/{Path(file).stem}.png", Path(page).parent).replace(os.sep, "/")


def block(files: Sequence[str], root: Path = ROOT, page: str = PAGES[0]) -> str:
    """The comments and what stands between them."""
    parts = [markdown(json.loads((root / file).read_text()), picture(file, page)) for file in files]
    return "\n\n".join([f"<!-- benchmarks: {' '.join(files)} -->", *parts, "<!-- /benchmarks -->"])


def named(text: str) -> list[str]:
    """The files that the first of a page's comments names."""
    found = BLOCK.search(text)
    return files_of(found) if found else []


def files_of(found: re.Match[str]) -> list[str]:
    """The files that one of these comments names."""
    return (found["files"] or "").split()


def filled(text: str, chosen: Sequence[str], root: Path = ROOT, page: str = PAGES[0]) -> str:
    """A page whose first block shows the chosen files, and every other the files that it names."""
    first = BLOCK.search(text)

    def of(found: re.Match[str]) -> str:
        same = first is not None and found.start() == first.start()
        return block(chosen if same else files_of(found), root, page)

    return BLOCK.sub(of, text)


def draw(path: Path, document: Document) -> None:
    """The plot of one file."""
    (plots.scaling if document["kind"] == "scaling" else plots.ratios)(path, document["cases"])


@click.command()
@click.argument("files", nargs=-1)
@click.option("--root", type=click.Path(path_type=Path, exists=True, file_okay=False), default=ROOT, hidden=True)
def main(files: tuple[str, ...], root: Path) -> None:
    """Write the README's figures and their plots from FILES, by default those that it names."""
    path = root / "README.md"
    readme = path.read_text()
    if not BLOCK.search(readme):
        raise click.UsageError("README.md has no lines '<!-- benchmarks -->' and '<!-- /benchmarks -->'")
    chosen = [Path(file).resolve().relative_to(root.resolve()).as_posix() for file in files] or named(readme)
    if not chosen:
        raise click.UsageError("README.md names no files yet; give some")
    if absent := [file for file in chosen if not (root / file).is_file()]:
        raise click.UsageError(f"there is no file {absent[0]!r}")
    pages = {page: (root / page).read_text() for page in PAGES if (root / page).exists()}
    texts = {page: filled(text, chosen, root, page) for page, text in pages.items()}
    shown = dict.fromkeys(file for text in texts.values() for found in BLOCK.finditer(text) for file in files_of(found))
    documents = {file: json.loads((root / file).read_text()) for file in shown}
    drawn = [file for file, document in documents.items() if document["kind"] != "visualisation"]
    for file in drawn:
        draw(root / picture(file), documents[file])
    for page, text in texts.items():
        (root / page).write_text(text)
    click.echo(f"{' and '.join(texts)}, {', '.join(picture(file) for file in drawn)} are written")


if __name__ == "__main__":
    main()
