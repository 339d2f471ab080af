"""One Parquet table to a group: the numbers of all its circuits, for programs that do not read masks."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxcircuits.atlas.checking import MOST_ABOUT
from jaxcircuits.atlas.store import TABLE, Chunk, ChunkId, Plan, read_chunk
from jaxcircuits.circuit import finite
from jaxcircuits.files import write_whole
from jaxcircuits.packages import needed
from weights_conversion.errors import printable
from weights_conversion.guards import file_size

MOST_TIMES = 4  # so much larger than in memory a table may be on disk


def _table(plan: Plan, root: Path, group: int):
    pa = needed("pyarrow", "an atlas")

    text, real, whole = pa.string(), pa.float64(), pa.int32()
    kinds = {"feature": text, "keep": real, "kernels": whole, "relevant": whole, "kept": whole, "effective": whole}
    # a direction has its file's name, which may be no UTF-8
    found = [row | {"feature": printable(row["feature"])} for row in rows(plan, root, group)]
    return pa.Table.from_pylist(found, pa.schema(kinds | {"correlation": real}))


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
    wanted, differs = _table(plan, root, group), "corrupt (it does not say what the chunks say)"
    try:
        if file_size(path) > MOST_TIMES * wanted.nbytes + MOST_ABOUT:
            return differs
        content = path.read_bytes()
        if not _modest(parquet.read_metadata(io.BytesIO(content)), wanted):
            return differs
        found = parquet.read_table(io.BytesIO(content))
    except Exception as error:  # a broken file may raise anything
        return f"corrupt ({str(error).partition(chr(10))[0]})"
    return None if found.equals(wanted) else differs


def _modest(about: Any, wanted: Any) -> bool:
    """Whether a file of Parquet unpacks to no more than the table that it should be: it says how many rows it has, and
    Snappy, unlike other ways to compress, makes nothing more than some twenty times as small."""
    columns = [about.row_group(g).column(c) for g in range(about.num_row_groups) for c in range(about.num_columns)]
    same = about.num_rows == wanted.num_rows and about.num_columns == wanted.num_columns
    return same and all(column.compression in ("SNAPPY", "UNCOMPRESSED") for column in columns)


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
