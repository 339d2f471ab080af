"""What is printed: tables and words on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from weights_conversion.errors import printable


@dataclass(frozen=True)
class Screen:
    """Words and tables; with `as_json` one document instead, with `quiet` neither of them and no progress."""

    quiet: bool
    as_json: bool

    def say(self, text: str) -> None:
        if not (self.quiet or self.as_json):
            click.echo("\n".join(map(printable, text.split("\n"))))

    def json(self, document: dict[str, Any]) -> None:
        if self.as_json:
            click.echo(json.dumps(document, indent=2, allow_nan=False))

    def line(self, event: dict[str, Any]) -> None:
        """One line of JSON of several, at once."""
        if self.as_json:
            click.echo(json.dumps(event, allow_nan=False))
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """What a bar would show, as a line on stderr where there is no terminal for one."""
        if not (self.quiet or self.as_json or Console(stderr=True).is_terminal):
            click.echo(text, err=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print rows; numbers stand to the right, and None is a feature that is constant: no r."""
        if self.quiet or self.as_json:
            return
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for column, cells in zip(columns, zip(*rows, strict=True), strict=True):
            words = all(isinstance(cell, str) for cell in cells)
            table.add_column(column, justify="left" if words else "right", overflow="fold")
        for row in rows:
            table.add_row(*map(_cell, row, columns))
        # in a file or a pipe lines may be as long as they like
        console = Console(width=None if sys.stdout.isatty() else 10_000, markup=False, highlight=False, emoji=False)
        with console.capture() as captured:
            console.print(table)
        click.echo("\n".join(line[1:].rstrip() for line in captured.get().splitlines()).strip("\n"))

    @contextlib.contextmanager
    def progress(self, what: str, total: float, *, of: str, each: float) -> Iterator[Callable[[float], None]]:
        """A bar on a terminal, with the speed in `of` a second; yields a function that is told what was done.

        Args:
            what: is being done.
            total: of what is told.
            of: the plural of what the user counts in.
            each: how much of the total one of them is.
        """
        console = Console(stderr=True)
        if self.quiet or not console.is_terminal:
            yield lambda done: None
            return
        speed = TextColumn("{task.fields[speed]}")
        columns = (SpinnerColumn(), TextColumn(what), BarColumn(), speed, TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=total, speed="compiling")

            def advance(done: float) -> None:
                bar.advance(task, done)
                rate = (bar.tasks[0].speed or 0) / each
                bar.update(task, speed=f"{rate:.3g} {of}/s" if rate else "")

            yield advance


def _cell(value: Any, column: str) -> str:
    if value is None:
        return "constant"
    if isinstance(value, float):
        return f"{value:g}" if column == "keep" else f"{value:.3f}"
    return printable(str(value))
