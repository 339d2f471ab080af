"""One Parquet table to a group: the numbers of all its circuits, for programs that do not read masks."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxcircuits.atlas.store import TABLE, Chunk, ChunkId, Plan, read_chunk
from jaxcircuits.circuit import finite
from jaxcircuits.files import write_whole
from jaxcircuits.packages import needed


def _table(plan: Plan, root: Path, group: int):
    pa = needed("pyarrow", "an atlas")

    text, real, whole = pa.string(), pa.float64(), pa.int32()
    kinds = {"feature": text, "keep": real, "kernels": whole, "relevant": whole, "kept": whole, "effective": whole}
    return pa.Table.from_pylist(list(rows(plan, root, group)), pa.schema(kinds | {"correlation": real}))


def write_table(plan: Plan, root: Path, group: int) -> None:
    """Write a group's table, all of whose chunks are there.

    Raises:
        InputError: a chunk is missing or corrupt, or the table cannot be written.
    """
    parquet = needed("pyarrow.parquet", "an atlas")

    content = io.BytesIO()
    parquet.write_table(_table(plan, root, group), content)
    write_whole(root / plan.groups[group].folder / TABLE, content.getvalue())


def check_table(plan: Plan, root: Path, group: int) -> str | None:
    """What is wrong with a group's table; None if it says what the chunks say.

    Raises:
        InputError: a chunk is missing or corrupt.
    """
    parquet = needed("pyarrow.parquet", "an atlas")

    path = root / plan.groups[group].folder / TABLE
    if not path.exists():
        return "missing"
    try:
        found = parquet.read_table(io.BytesIO(path.read_bytes()))
    except Exception as error:  # a broken file may raise anything
        return f"corrupt ({str(error).partition(chr(10))[0]})"
    return None if found.equals(_table(plan, root, group)) else "corrupt (it does not say what the chunks say)"


def rows(plan: Plan, root: Path, group: int) -> Iterator[dict[str, Any]]:
    """A group's circuits as the rows of a table: by feature, then by amount.

    Raises:
        InputError: a chunk is missing or corrupt.
    """
    for number in range(plan.groups[group].chunks):
        which = ChunkId(group, number)
        yield from rows_of(plan, which, read_chunk(plan, root, which))


def rows_of(plan: Plan, which: ChunkId, chunk: Chunk) -> Iterator[dict[str, Any]]:
    """The same of one chunk."""
    labels, amounts = plan.features(which).labels, plan.amounts
    for f, k in np.ndindex(chunk.kept.shape):
        yield {
            "feature": labels[f],
            "keep": amounts[k].get("keep"),
            "kernels": amounts[k].get("kernels"),
            "relevant": int(chunk.relevant[f]),
            "kept": int(chunk.kept[f, k]),
            "effective": int(chunk.effective[f, k]),
            "correlation": finite(float(chunk.correlation[f, k])),
        }
