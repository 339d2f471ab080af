"""The passes over the images for one chunk of features: what is compiled once, and run for each block of images."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxcircuits import live
from jaxcircuits.chunks import Collected, Sizes, device_memory, evenly, in_chunks
from jaxcircuits.data import batches
from jaxcircuits.features import Features, cotangents, place_weights
from jaxcircuits.gradients import pullback, tiles_of
from jaxcircuits.granularity import fitted
from jaxcircuits.layers import Masks, Variables
from jaxcircuits.masked import outputs
from jaxcircuits.paths import relevant
from jaxcircuits.plans import Plan, Sums, Weights, at_a_time, most
from jaxcircuits.streams import Streams
from jaxcircuits.taps import Network

# Share of the device's memory that a compiled step may take.
FITS = 0.7


class Program(NamedTuple):
    """A plan compiled for so many features and images.

    Attributes:
        step: (sums, variables, weights, directions, places, images, real) -> the sums with `real` more images.
        finish: (sums of each stream, weights, directions, relevant kernels, number of images) -> scores.
        bytes: of memory that the steps under way take.
    """

    step: Callable[..., Sums]
    finish: Callable[..., Sums]
    bytes: int


_PROGRAMS: weakref.WeakKeyDictionary[Network, dict[tuple, Program]] = weakref.WeakKeyDictionary()


def program(plan: Plan, variables: Variables, size: Sizes) -> Program:
    """Compiled before the first image, so that nothing is left to compile after it; for the default device."""
    where = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    known, key = _PROGRAMS.setdefault(plan.network, {}), (plan[1:], size, where)
    features, batch, streams = size.together, size.images, size.streams
    if key not in known:
        target = plan.network.layers[plan.target]
        weights = jax.eval_shape(functools.partial(plan.weights, size=size), variables)
        sums = jax.eval_shape(functools.partial(plan.nothing, features))
        masks = {name: (features, plan.network.layers[name].inputs, plan.network.layers[name].outputs) for name in sums}
        possible = {name: jax.ShapeDtypeStruct(shape, bool) for name, shape in masks.items()}
        directions = jax.ShapeDtypeStruct((features, target.outputs), jnp.float32)
        places = jax.ShapeDtypeStruct((batch, 2), jnp.int32)
        images = jax.ShapeDtypeStruct((batch, *plan.network.image_shape), jnp.float32)
        number = jax.ShapeDtypeStruct((), jnp.int32)
        with jax.default_matmul_precision(plan.precision):
            step = add_block.lower(plan, sums, variables, weights, directions, places, images, number).compile()
            finish = finished.lower(plan, (sums,) * streams, weights, directions, possible, number).compile()
        known[key] = Program(step, finish, streams * size.parts * _bytes(step))
    return known[key]


def fitting(plan: Plan, variables: Variables, size: Sizes) -> Sizes:
    """So many features at a time, or half of them, and so on, until the compiled steps fit in memory."""
    if few := most(plan):
        each = evenly(size.together, few)
        size = size._replace(features=-(-size.together // each) * each * size.parts)
    while size.features > 1 and program(plan, variables, size).bytes > FITS * device_memory():
        size = size.halved()
    return size


def _bytes(step) -> int:
    """Memory of a compiled step, where the platform tells."""
    memory = step.memory_analysis()
    parts = ("temp_size_in_bytes", "argument_size_in_bytes", "output_size_in_bytes")
    return sum(getattr(memory, part, 0) for part in parts) - getattr(memory, "alias_size_in_bytes", 0)


def scores_of_chunk(
    plan: Plan,
    variables: Variables,
    weights: Weights,
    images,
    number: int,
    features: Features,
    size: Sizes,
    progress: Callable[[int], object],
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Scores {layer: (F, I, O)}, or at the plan's granularity, and relevant kernels of one chunk of features."""
    compiled, batch, done = program(plan, variables, size), size.images, 0
    parts = list(in_chunks(features, size.together))
    possible = [relevant(plan.network, variables, part, plan.layers) for part in parts]
    channels = plan.network.layers[plan.target].outputs
    directions = [jnp.asarray(part.matrix(channels)) for part in parts]
    places = features.places(number, batch)

    def step(mine: tuple[int, Sums], given: Array, block: Array, real: Array) -> tuple[int, Sums]:
        part, sums = mine
        return part, compiled.step(sums, variables, weights, directions[part], given, block, real)

    own = [*range(len(parts))] * size.streams  # in turn, so that each block goes to every part once
    with Streams([(part, plan.nothing(size.together)) for part in own]) as streams:
        for block, real in batches(images, batch):
            given = jnp.asarray(places[done : done + batch], jnp.int32)
            for _ in parts:
                streams.go_on(step, given, jnp.asarray(block), jnp.int32(real))
            done += real
            progress(real * len(features))
        found = streams.results()
    scores = Collected(len(features))
    for here, (own, some) in enumerate(zip(directions, possible, strict=True)):
        sums = tuple(mine for part, mine in found if part == here)
        scores.add((compiled.finish(sums, weights, own, some, jnp.int32(number)), some))
    return scores.whole


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="total")
def add_block(
    plan: Plan,
    total: Sums,
    variables: Variables,
    weights: Weights,
    directions: Array,
    places: Array,
    images: Array,
    real: Array,
) -> Sums:
    """Each layer's sum with the first `real` of some more images: what is compiled for a block."""
    counts = (jnp.arange(len(images)) < real)[:, None, None]

    def objective(maps: Array) -> Array:
        where = place_weights(plan.place, maps, places)
        return cotangents(plan.objective, maps, where) * counts

    tiles = weights.tiles
    if plan.circuit and not plan.live:
        tiles = tiles_of(plan.network, variables, plan.target, len(images), ready=False)
    back = pullback(
        plan.network, variables, plan.target, plan.layers, images, objective,
        sparse=plan.sparse, circuit=plan.live, tiles=tiles,
    )  # fmt: skip
    layers, inputs = {name: plan.network.layers[name] for name in plan.layers}, dict(back.inputs)
    if plan.criterion.of_outputs:
        inputs = {name: outputs(layer, variables, inputs[name]) for name, layer in layers.items()}
    seen = {name: plan.statistic(name).seen(layer, inputs[name]) for name, layer in layers.items()}

    def add(directions: Array, total: Sums) -> Sums:
        """Of some features."""
        found, sums = back.of(directions), {}
        for name, layer in layers.items():
            statistic, w = plan.statistic(name), weights.own[name]
            if name == plan.target:
                sums[name] = statistic.add(total[name], layer, seen[name], found.cotangents, directions, w)
            elif plan.live and layer.ungrouped:
                sums[name] = live.add(statistic.added, total[name], layer, inputs[name], found.outputs[name], w)
            else:
                places = [back.supports[name]] if name in back.supports else []
                sums[name] = statistic.add(total[name], layer, seen[name], found.outputs[name], *places, w)
        return sums

    size = at_a_time(plan, len(directions))
    if size == len(directions):
        return add(directions, total)

    def some(i: Array, total: Sums) -> Sums:
        start = i * size
        own = {n: lax.dynamic_slice_in_dim(a, start, size, plan.axis(n)) for n, a in total.items()}
        own = add(lax.dynamic_slice_in_dim(directions, start, size), own)
        return {n: lax.dynamic_update_slice_in_dim(a, own[n], start, plan.axis(n)) for n, a in total.items()}

    return lax.fori_loop(0, len(directions) // size, some, total)


@functools.partial(jax.jit, static_argnames="plan")
def finished(
    plan: Plan, totals: tuple[Sums, ...], weights: Weights, directions: Array, possible: Masks, number: Array
) -> dict[str, Array]:
    total = jax.tree.map(lambda *sums: functools.reduce(jnp.add, sums), *totals)
    scores = {}
    for name in plan.layers:
        layer = plan.network.layers[name]
        own = (directions,) if name == plan.target else ()
        found = plan.statistic(name).finish(total[name], layer, *own, weights.own[name], number)
        scores[name] = fitted(found, possible[name], plan.granularity)
    return scores
