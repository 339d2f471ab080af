"""Chunks shared out to the devices of a host, or of all processes that `jax.distributed` knows.

Every device scores a whole chunk: one program over a mesh (`shard_map`), with the features as its one sharded axis. The
images are read once for all devices, and nothing is communicated. Each process then judges and writes the chunks of its
own devices, a thread to a device: circuits differ in what there is to compute, and no device waits for another.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcircuits import passes, plans
from jaxcircuits.atlas.building import Done, Engine, one_device, written
from jaxcircuits.atlas.processes import check_devices
from jaxcircuits.atlas.store import ChunkId
from jaxcircuits.atlas.work import Progress, Work
from jaxcircuits.chunks import Sizes
from jaxcircuits.criteria import OVER_IMAGES, criterion
from jaxcircuits.data import Images, batches, count, image_shape
from jaxcircuits.options import PRECISIONS
from jaxcircuits.paths import relevant
from jaxcircuits.scores import Record, Scores
from jaxcircuits.threads import pool

AXIS = "chunks"
Device = Any  # jax.Device, which pyright takes for a variable


def engine(devices: Sequence[Device] | None = None) -> Engine:
    """What makes chunks on these devices, by default on all there are.

    Raises:
        InputError: there are several processes, and the devices are not all of theirs.
    """
    devices = list(jax.devices() if devices is None else devices)
    check_devices(devices)
    if devices == jax.devices()[:1]:
        return one_device
    return functools.partial(_on_mesh, Mesh(np.array(devices), (AXIS,)))


def _on_mesh(mesh: Mesh, work: Work, root: Path, todo: Sequence[ChunkId], progress: Progress) -> Iterator[Done]:
    local = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    turn, told = threading.Lock(), threading.Lock()
    workers = {device: _on_device(work, device, turn, len(local)) for device in local}

    def tell(done: float) -> None:
        with told:
            progress(done)

    def make(device: Device, which: ChunkId, scores: Callable[[], list[Scores]] | None) -> Done:
        with jax.default_device(device):
            mine = workers[device]
            found = mine.scores(which, tell) if scores is None else scores()
            return written(work.plan, root, which, mine.chunk(which, found, tell))

    with pool(len(local), "device") as working:
        for some in _rounds(todo, mesh.devices.size):
            if work.plan.manifest["criterion"] in OVER_IMAGES:
                found = _scores(mesh, work, some, tell)
            else:
                found = {device: None for device in local}
            places = zip(mesh.devices.flat, some, strict=False)
            mine = [(device, which) for device, which in places if device in workers]
            tasks = [working.submit(make, device, which, found[device]) for device, which in mine]
            try:
                for task in as_completed(tasks):
                    yield task.result()
            finally:
                for task in tasks:
                    task.cancel()


def _rounds(todo: Sequence[ChunkId], devices: int) -> Iterator[list[ChunkId]]:
    """As many chunks of one group as there are devices, or what is left of the group."""
    for group in dict.fromkeys(which.group for which in todo):
        chunks = [which for which in todo if which.group == group]
        yield from (chunks[start : start + devices] for start in range(0, len(chunks), devices))


def _on_device(work: Work, device: Device, turn: threading.Lock, sharers: int) -> Work:
    """The same work with the weights on a device, and images that wait for their turn to be read."""
    model, images = work.model, work.images
    with jax.default_device(device):
        variables = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), model.variables)
    here = dataclasses.replace(model, variables=variables)
    here._networks.update(model._networks)  # programs are known by their network
    if isinstance(images, Images):
        images = SharedImages(images, turn, sharers)
    return Work(here, images, work.plan)


class SharedImages(Images):
    """Images that several threads iterate over, each from its own beginning: one reads at a time.

    Opening a picture silences warnings, which changes what all threads see.
    """

    def __init__(self, images: Images, turn: threading.Lock, sharers: int) -> None:
        self.__dict__.update(images.__dict__)
        threads = -(-self._pictures.threads // sharers)
        self._pictures, self._turn = dataclasses.replace(self._pictures, threads=threads), turn

    def uint8(self) -> Iterator[np.ndarray]:
        blocks = super().uint8()
        while True:
            with self._turn:
                block = next(blocks, None)
            if block is None:
                return
            yield block


def _scores(
    mesh: Mesh, work: Work, some: Sequence[ChunkId], progress: Progress
) -> dict[Device, Callable[[], list[Scores]]]:
    """The scores of a chunk on each device of this process; what fills up the last round is left out."""
    asked, model, images = work.plan.manifest, work.model, work.images
    group, network = work.plan.groups[some[0].group], model.network(image_shape(images))
    features = [work.filled(which).resolve(network.layers) for which in some]
    features += features[-1:] * (mesh.devices.size - len(some))
    first, number, target = features[0], count(images), group.features.layer
    rule = criterion(asked["criterion"], asked["absolute"], asked["granularity"])
    plan = plans.Plan(
        network, target, group.layers, rule, first.objective, first.place, PRECISIONS[asked["precision"]],
        asked["granularity"],
    )  # fmt: skip
    plan = plan._replace(sparse=plans.sparse_layers(plan, model.variables, group.chunk, images))
    weights = plans.arranged(plan, model.variables, Sizes(group.chunk, group.batch, 1))
    variables, weights = (_everywhere(mesh, tree) for tree in (model.variables, weights))
    directions = _one_each(mesh, [f.matrix(network.layers[target].outputs) for f in features])
    places = first.places(number, group.batch)
    sums, done = _nothing(plan, mesh, group.chunk), 0
    real_features = sum(len(work.plan.features(which)) for which in some)
    with jax.default_matmul_precision(plan.precision):
        for block, real in batches(images, group.batch):
            given = places[done : done + group.batch].astype(np.int32)
            sums = _add_block(plan, mesh, sums, variables, weights, directions, given, block, np.int32(real))
            done += real
            progress(real * real_features)
        possible = [relevant(network, model.variables, f, group.layers) for f in features]
        possible = {n: _one_each(mesh, [np.asarray(p[n]) for p in possible]) for n in group.layers}
        found = _finished(plan, mesh, sums, weights, directions, possible, np.int32(number))
    record = Record(asked["criterion"], asked["absolute"], first.objective, number, None, asked["precision"],
                    bool(plan.sparse), granularity=asked["granularity"])  # fmt: skip

    def on(device: Device) -> list[Scores]:
        """Called where the device is the default one."""
        values, there = ({n: jnp.asarray(_of(device, tree[n])) for n in group.layers} for tree in (found, possible))
        return [Scores(values, there, group.layers, record)] * len(work.levels)

    return {device: functools.partial(on, device) for device in mesh.local_devices}


FEATURES, EVERYWHERE = PartitionSpec(AXIS), PartitionSpec()


def _of_sums(plan: plans.Plan) -> dict[str, PartitionSpec]:
    """How sums are sharded: along the features."""
    return {name: PartitionSpec(*[None] * plan.axis(name), AXIS) for name in plan.layers}


@functools.partial(jax.jit, static_argnames=("plan", "mesh", "features"))
def _nothing(plan: plans.Plan, mesh: Mesh, features: int) -> plans.Sums:
    each = jax.shard_map(lambda: plan.nothing(features), mesh=mesh, in_specs=(), out_specs=_of_sums(plan))
    return each()


@functools.partial(jax.jit, static_argnames=("plan", "mesh"), donate_argnames="sums")
def _add_block(plan, mesh, sums, variables, weights, directions, places, block, real) -> plans.Sums:
    """`passes.add_block` of one chunk on each device: a device sees what it would see if it were the only one."""
    each = jax.shard_map(
        functools.partial(passes.add_block, plan),
        mesh=mesh,
        in_specs=(_of_sums(plan), *[EVERYWHERE] * 2, FEATURES, *[EVERYWHERE] * 3),
        out_specs=_of_sums(plan),
        check_vma=False,
    )
    return each(sums, variables, weights, directions, places, block, real)


@functools.partial(jax.jit, static_argnames=("plan", "mesh"))
def _finished(plan, mesh, sums, weights, directions, possible, number):
    """`passes.finished` of one chunk on each device."""
    each = jax.shard_map(
        functools.partial(passes.finished, plan),
        mesh=mesh,
        in_specs=((_of_sums(plan),), EVERYWHERE, FEATURES, FEATURES, EVERYWHERE),
        out_specs=FEATURES,
        check_vma=False,
    )
    return each((sums,), weights, directions, possible, number)


def _everywhere(mesh: Mesh, tree):
    """Arrays of which every device has a copy, in whichever process; every process has them."""
    sharding = NamedSharding(mesh, EVERYWHERE)

    def put(leaf):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put, tree)


def _one_each(mesh: Mesh, arrays: Sequence[np.ndarray]) -> jax.Array:
    """D arrays (F, ...) as one (D * F, ...), of which every device has one."""
    size, *rest = arrays[0].shape
    sharding = NamedSharding(mesh, FEATURES)
    shape = (len(arrays) * size, *rest)

    def one(index: Any) -> np.ndarray:
        return arrays[(index[0].start or 0) // size]

    return jax.make_array_from_callback(shape, sharding, one)


def _of(device: Device, array: jax.Array) -> np.ndarray:
    """What one device has of an array."""
    return next(np.asarray(shard.data) for shard in array.addressable_shards if shard.device == device)
