"""`python -m benchmarks`: assert that the engines agree, time them in turn, print a table, write JSON and a plot."""

import json
import os
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks import programs, report
from benchmarks.cases import FULL, NAMES, QUICK, SCALING
from benchmarks.engines import ENVIRONMENT
from benchmarks.measure import matrix_rate, measure, surroundings


def show(document: dict[str, Any]) -> None:
    """Print the figures for people."""
    console = Console(width=150)
    if document["cases"]:
        title = "per image and feature; reference, strong: how many times as long PyTorch takes"
        table = Table(*report.HEADER, title=title)
        for cells in report.rows(document):
            table.add_row(*cells)
        console.print(table)
    for sentence in report.programs(document):
        console.print(sentence)


@click.command()
@click.option("--quick", is_flag=True, help="A few cases, in minutes.")
@click.option("--scaling", is_flag=True, help="jaxcircuits alone, over numbers of features and images.")
@click.option(
    "--rounds", type=click.IntRange(min=1), help="Times each engine takes its turn.  [default: 3, 2 for --quick]"
)
@click.option("--only", help="Only cases whose name holds this.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures as JSON, and a plot beside them."
)
def main(quick: bool, scaling: bool, rounds: int | None, only: str | None, out: Path | None) -> None:
    """Time jaxcircuits next to two PyTorch baselines."""
    if quick and scaling:
        raise click.UsageError("--quick and --scaling are two sets of cases; give one of them")
    if out is not None and out.suffix != ".json":
        raise click.UsageError(f"--out is {str(out)!r}; expected a name that ends in .json")
    if out is not None and not out.absolute().parent.is_dir():
        raise click.UsageError(f"--out is {str(out)!r}, but there is no such folder")
    every = SCALING if scaling else QUICK if quick else FULL
    cases = [case for case in every if not only or only in case.name]
    short = [] if scaling else [name for name in programs.PROGRAMS if not only or only in name]
    if not cases and not short:
        raise click.UsageError(f"no case's name holds {only!r}; there are, among others, {every[0].name!r}")
    rounds = rounds or (2 if quick else 3)
    os.environ.update(ENVIRONMENT["jaxcircuits"])
    rate = matrix_rate()
    document = {"kind": "scaling" if scaling else "cases", **surroundings(rounds, rate), "cases": [], "programs": []}
    for case in cases:
        document["cases"].append(measure(case, rounds, rate, NAMES[:1] if scaling else case.engines))
        click.echo(f"{case.name}: {document['cases'][-1]['milliseconds']['jaxcircuits']:.2f} ms", err=True)
        save(out, document)  # what is measured so far, for long runs
    document["programs"] = programs.measure(rounds, short)
    show(document)
    save(out, document)
    if out is not None and cases:
        report.draw(out.with_suffix(".png"), document)


def save(out: Path | None, document: dict[str, Any]) -> None:
    if out is not None:
        out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
