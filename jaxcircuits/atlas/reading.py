"""`Atlas`: what a directory of circuits answers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxcircuits.atlas import questions, store, tables
from jaxcircuits.atlas.overlaps import against
from jaxcircuits.atlas.store import Chunk, ChunkId, Group, Plan
from jaxcircuits.circuit import Circuit, finite
from jaxcircuits.criteria import STEPS
from jaxcircuits.errors import InputError, nearest
from jaxcircuits.manifest import identity
from jaxcircuits.packages import needed

if TYPE_CHECKING:
    import pandas

# Chunks that stay in memory, packed; some megabytes each.
KEPT = 4


class Atlas:
    """The circuits of many features, read from a directory that `build_atlas` or `jaxcircuits atlas` has written.

    An atlas that is not finished answers for the chunks that are there. What is read is checked against its checksum.

    Args:
        directory: of the atlas.

    Attributes:
        directory: the same.
        manifest: what was asked: model, weights, images, criterion and its options, amounts.
        features: what each feature is called, "features.3:17", in the order of all matrices and tables.

    Raises:
        InputError: there is no atlas, or it is of another version.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.plan: Plan = store.read(self.directory)
        self.manifest = {k: v for k, v in self.plan.manifest.items() if k != "groups"}
        self.features = tuple(label for group in self.plan.groups for label in group.features.labels)
        self.chunk = functools.lru_cache(KEPT)(self._read)

    def __repr__(self) -> str:
        asked = f"{self.manifest['model']}, {self.manifest['criterion']}, {len(self.features)} features"
        return f"Atlas({str(self.directory)!r}: {asked})"

    def __len__(self) -> int:
        return len(self.features)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that the features belong to."""
        return tuple(dict.fromkeys(group.features.layer for group in self.plan.groups))

    @property
    def amounts(self) -> tuple[float, ...]:
        """The keep levels, or numbers of kernels, in the order of the store."""
        return tuple(next(iter(amount.values())) for amount in self.plan.amounts)

    @property
    def complete(self) -> bool:
        """Whether every chunk is there; `verify` looks into them as well."""
        return all(len(self.there(g)) == group.chunks for g, group in enumerate(self.plan.groups))

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """{layer: (O, I)} of every layer that has kernels in a circuit."""
        return {name: shape for group in self.plan.groups for name, shape in group.shapes.items()}

    def circuit(self, feature: str, *, keep: float | None = None, kernels: int | None = None) -> Circuit:
        """One circuit, as `extract` would give it.

        Args:
            feature: as it is written on the command line, "features.3:17" or "features.3:17@middle".
            keep, kernels: one of the atlas's levels; need not be given where it has only one.

        Raises:
            InputError: the atlas has no such feature or level, or the chunk is missing or corrupt.
        """
        k = self.level(keep=keep, kernels=kernels)
        which, f = self.find(feature)
        group, chunk = self.plan.groups[which.group], self.chunk(which)
        one = self.plan.features(which)[f : f + 1]
        row = {n: store.unpacked(bits[f, k], group.shapes[n]).T for n, bits in chunk.masks.items()}
        asked = {k: v for k, v in self.manifest.items() if k not in ("format", "amounts", "scores", "steps")}
        if self.manifest["criterion"] in STEPS:
            asked["steps"] = self.manifest["steps"]
        both = {"keep": None, "kernels": None} | self.plan.amounts[k]
        found = {
            "relevant": int(chunk.relevant[f]),
            "kept": int(chunk.kept[f, k]),
            "effective": int(chunk.effective[f, k]),
            "correlation": finite(chunk.correlation[f, k]),
        }
        where = {"layers": list(group.layers), "objective": one.objective, "feature": identity(one)}
        return Circuit(
            row,
            asked | where | both | chunk.about | found,
            scores=self._scores(group, chunk, f, k),
            offsets=_offsets(group, chunk, f, k),
            direction=None if one.directions is None else one.directions[0],
        )

    def masks(self, layer: str, *, keep: float | None = None, kernels: int | None = None) -> dict[str, np.ndarray]:
        """The masks of all of a layer's features that are there, at one level: {layer: (F, I, O) bool}.

        Raises:
            InputError: as `circuit`.
        """
        found: dict[str, list[np.ndarray]] = {}
        for part in questions.parts(self, self.level(keep=keep, kernels=kernels), layer):
            for name, bits in part.bits.items():
                found.setdefault(name, []).append(np.swapaxes(store.unpacked(bits, self.shapes[name]), 1, 2))
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def table(self) -> pandas.DataFrame:
        """One row a circuit: layer, feature, keep or kernels, relevant, kept, effective, correlation.

        Raises:
            InputError: a chunk is corrupt. Those that are not there yet are left out.
        """
        pandas, parts = needed("pandas", "a table"), []
        for g, group in enumerate(self.plan.groups):
            for which in self.there(g):
                parts += [
                    {"layer": group.features.layer} | row for row in tables.rows_of(self.plan, which, self.chunk(which))
                ]
        unused = {"keep", "kernels"} - {*self.plan.amounts[0]}
        return pandas.DataFrame(parts).drop(columns=[*unused], errors="ignore")

    def statistics(self) -> pandas.DataFrame:
        """One row for each layer of features and each level.

        Columns: layer, keep (or kernels), features, the mean and the 10th, 50th and 90th percentile of r (`mean`,
        `low`, `median`, `high`), how many circuits are constant and so have no r, the mean numbers of kept and of
        effective kernels, and `used`: the share of all kernels of the scored layers that at least one circuit has.
        """
        return questions.statistics(self)

    def users(
        self,
        layer: str,
        output: int,
        input: int | None = None,
        *,
        keep: float | None = None,
        kernels: int | None = None,
    ) -> pandas.DataFrame:
        """The features that use kernel (output, input) of a layer, or any kernel that makes its channel `output`.

        Columns: feature, layer, kernels (how many of the channel's), correlation; most kernels first.

        Raises:
            InputError: no circuit of the atlas has that layer, or it has no such channel; as `circuit`.
        """
        return questions.users(self, self.level(keep=keep, kernels=kernels), layer, output, input)

    def sharing(self, layer: str, *, keep: float | None = None, kernels: int | None = None) -> pandas.DataFrame:
        """The kernels of a layer by how many features use them: the most shared first, the never used last.

        Columns: output, input, users, share (of the features whose circuits have that layer).

        Raises:
            InputError: as `users`.
        """
        return questions.sharing(self, self.level(keep=keep, kernels=kernels), layer)

    def iou(self, a: str, b: str, *, keep: float | None = None, kernels: int | None = None) -> float:
        """Intersection over union of the circuits of two features, over the kernels of all layers.

        Raises:
            InputError: as `circuit`.
        """
        k = self.level(keep=keep, kernels=kernels)
        one, other = ({n: bits[f, k] for n, bits in self.chunk(w).masks.items()} for w, f in map(self.find, (a, b)))
        shared, size = against(one, {n: bits[None] for n, bits in other.items()})
        own = sum(int(np.bitwise_count(bits).sum()) for bits in one.values())
        either = int(own + size[0] - shared[0])
        return int(shared[0]) / either if either else float("nan")

    def iou_matrix(
        self, layer: str | None = None, *, keep: float | None = None, kernels: int | None = None
    ) -> pandas.DataFrame:
        """`iou` of each two features of a layer, or of the whole atlas; rows and columns are features.

        Raises:
            InputError: as `circuit`.
        """
        return questions.iou_matrix(self, self.level(keep=keep, kernels=kernels), layer)

    def nearest(
        self, feature: str, number: int = 10, *, layer: str | None = None, keep: float | None = None,
        kernels: int | None = None,
    ) -> pandas.DataFrame:  # fmt: skip
        """The features whose circuits overlap most with that of one: feature, layer, iou, shared, kept (kernels).

        Args:
            feature: which.
            number: how many.
            layer: among its features, or all if None.
            keep, kernels: the level.

        Raises:
            InputError: as `circuit`.
        """
        return questions.near(self, self.level(keep=keep, kernels=kernels), feature, layer).head(number)

    def clusters(
        self, layer: str | None = None, *, number: int | None = None, overlap: float | None = None,
        keep: float | None = None, kernels: int | None = None,
    ) -> pandas.DataFrame:  # fmt: skip
        """Groups of features with alike circuits: hierarchical clustering, average linkage, of the distance 1 - IoU.

        Args:
            layer: whose features, or all if None.
            number: of clusters, at most.
            overlap: or the mean IoU down to which clusters are joined.
            keep, kernels: the level.

        Returns:
            Columns feature, cluster (0 is the largest), size, iou (mean with the others of the cluster).

        Raises:
            InputError: both or neither of number and overlap; as `circuit`.
        """
        return questions.clusters(self, self.level(keep=keep, kernels=kernels), layer, number, overlap)

    def level(self, *, keep: float | None = None, kernels: int | None = None) -> int:
        """The number of a level, 0 <= k < K.

        Raises:
            InputError: the atlas has no such level, or several and none was named.
        """
        name = next(iter(self.plan.amounts[0]))
        value = {"keep": keep, "kernels": kernels}[name]
        other = {"keep": kernels, "kernels": keep}[name]
        if other is None and value is None and len(self.amounts) == 1:
            return 0
        if other is not None or value not in self.amounts:
            given = {"keep": keep, "kernels": kernels}.items()
            asked = " and ".join(f"{n}={v}" for n, v in given if v is not None) or "one level alone"
            raise InputError(
                f"the atlas has not {asked}; expected {name} of {' or '.join(f'{a:g}' for a in self.amounts)}"
            )
        return self.amounts.index(value)

    def find(self, feature: str) -> tuple[ChunkId, int]:
        """The chunk of a feature, and its row in it."""
        if feature not in self._places:
            raise InputError(f"the atlas has no feature {feature!r}; {nearest(feature, self.features)}")
        g, f = self._places[feature]
        return ChunkId(g, f // self.plan.groups[g].chunk), f % self.plan.groups[g].chunk

    @functools.cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """{feature: its group and its place in it}."""
        return {
            label: (g, f) for g, group in enumerate(self.plan.groups) for f, label in enumerate(group.features.labels)
        }

    def of_layer(self, layer: str) -> list[tuple[int, Group]]:
        """The groups of a layer's features, with their numbers."""
        if layer not in self.layers:
            raise InputError(f"the atlas has no features of {layer!r}; {nearest(layer, self.layers)}")
        return [(g, group) for g, group in enumerate(self.plan.groups) if group.features.layer == layer]

    def there(self, group: int) -> Sequence[ChunkId]:
        """The chunks of a group that have been made."""
        every = (ChunkId(group, number) for number in range(self.plan.groups[group].chunks))
        return [which for which in every if store.record_path(self.plan.path(self.directory, which)).exists()]

    def _read(self, which: ChunkId) -> Chunk:
        return store.read_chunk(self.plan, self.directory, which)

    def _scores(self, group: Group, chunk: Chunk, f: int, k: int) -> dict[str, np.ndarray] | None:
        if self.manifest["scores"] is None:
            return None
        found = {name: chunk.more[f"score/{name}"][f] for name in group.layers}
        if self.manifest["criterion"] in STEPS:
            found = {name: array[k] for name, array in found.items()}
        return {name: array.T.astype(np.float32) * chunk.more["scale"][f] for name, array in found.items()}


def _offsets(group: Group, chunk: Chunk, f: int, k: int) -> dict[str, np.ndarray] | None:
    found = {name: chunk.more[f"offset/{name}"][f, k] for name in group.layers if f"offset/{name}" in chunk.more}
    return found or None
