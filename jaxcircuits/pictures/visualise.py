r"""Feature visualisation: pictures that drive a feature, found by gradient ascent from noise.

For feature f with the map a_f, all pictures of a chunk together, in steps of Adam on their spectra z:

    maximise  a_f(T_t(x(z)))[p],  or its mean over positions,

where x(z) is the picture of a spectrum (fourier.py), T_t the view of step t (transforms.py), and p the position of the
map whose receptive field lies in the middle. The network sees no more of the picture than it needs for that: it runs on
the smallest images, a multiple of 32 pixels, that hold the receptive field of one position whole.

References:
    Olah, Mordvintsev, Schubert, "Feature Visualization" (Distill, 2017, doi 10.23915/distill.00007).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxcircuits.chunks import in_chunks
from jaxcircuits.errors import InputError, check_count, check_seed
from jaxcircuits.features import Features
from jaxcircuits.layers import Arrays, Masks, Variables
from jaxcircuits.model import Model
from jaxcircuits.peaks import maps_in
from jaxcircuits.pictures import fourier, transforms
from jaxcircuits.pictures.circuits import check_circuit, in_circuit
from jaxcircuits.pictures.transforms import STILL, View
from jaxcircuits.receptive import fields
from jaxcircuits.taps import Network

OBJECTIVES = ("middle", "mean")
STEPS, RATE, NOISE = 128, 0.1, 0.01
# Pictures in one device call, and sides of the images that the network may be run on: multiples of the first.
CPU_CHUNK, CHUNK, SIDE, SMALLEST = 16, 64, 32, 64


@dataclass(frozen=True, eq=False)
class Visualisation:
    """Pictures of F features.

    Attributes:
        labels: the features', F of them.
        pictures: (F, h, w, 3) uint8.
        values: the features' values on them (F,): in the middle, or in the mean; before the pictures are cropped.
        start: their values on the noise from which they were made (F,).
    """

    labels: tuple[str, ...]
    pictures: np.ndarray
    values: np.ndarray
    start: np.ndarray

    @property
    def unmoved(self) -> np.ndarray:
        """Features without a gradient in any step (F,): their pictures are the grey noise from which they began."""
        return self.values == self.start


class Plan(NamedTuple):
    """What a compiled step depends on besides its arguments.

    Attributes:
        network: for images of the size that is needed.
        target: the features' layer.
        position: of the map that counts; None for the mean of all.
        canvas: height and width of the pictures, margins included.
        reach: how many pixels high and wide the features see.
        mean, std: with which images are normalised.
    """

    network: Network
    target: str
    position: tuple[int, int] | None
    canvas: int
    reach: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def visualise(
    model: Model,
    features: Features,
    *,
    masks: Arrays | None = None,
    offsets: Arrays | None = None,
    objective: str = "middle",
    steps: int = STEPS,
    seed: int = 0,
    crop: bool = True,
    chunk: int | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> Visualisation:
    """Make a picture of each feature, many at once.

    Args:
        model: the network; images of three colours.
        features: F of them; their position and objective do not matter here.
        masks: of a circuit, to see what drives the feature in it: {layer: (I, O)}, one for all features, or
            {layer: (F, I, O)}, each feature's own, which are run one after another.
        offsets: of mean ablation, {layer: (O,)} or {layer: (F, O)} like the masks.
        objective: the feature's value in the "middle", or its "mean" over the map, which shows textures.
        steps: of Adam.
        seed: of the noise at the beginning and of the views; a feature's picture does not depend on the other
            features; that of a direction without a name does on its number among them.
        crop: cut the picture down to the receptive field of the position in the middle; with "mean" nothing is cut.
        chunk: features at a time; 16 on a CPU and 64 elsewhere if not given.
        progress: called with the number of features times steps done since the last call.

    Raises:
        InputError: an unknown layer, channel or objective, masks that do not fit, missing weights, a network of other
            than three colours.
    """
    if objective not in OBJECTIVES:
        raise InputError(f"unknown objective {objective!r}; expected one of {', '.join(OBJECTIVES)}")
    for name, number in (("steps", steps), ("chunk", chunk)):
        if number is not None:
            check_count(name, number)
    check_seed(seed)
    if model.channels != 3:
        raise InputError(f"{model.name} takes images of {model.channels} channels; pictures have 3")
    features = features.resolve(model.layers, places=False)
    model.check_weights([features.layer])
    own = check_circuit(model, features, masks, offsets)
    asked, box = plan(model, features.layer, objective)
    size = 1 if own else chunk or (CPU_CHUNK if jax.default_backend() == "cpu" else CHUNK)
    found = []
    with jax.default_matmul_precision("highest"):
        for i, part in enumerate(in_chunks(features, size)):
            real = min(size, len(features) - i * size)  # the last chunk is filled up
            circuit = in_circuit(asked.network, model.variables, masks, offsets, i if own else None)
            found.append(_ascend(asked, *circuit, part, steps, seed, functools.partial(progress, real)))
    pictures, values, start = (np.concatenate(parts)[: len(features)] for parts in zip(*found, strict=True))
    if crop and box is not None:
        pictures = pictures[:, box[0], box[1]]
    return Visualisation(features.labels, np.round(pictures * 255).astype(np.uint8), values, start)


def plan(model: Model, target: str, objective: str) -> tuple[Plan, tuple[slice, slice] | None]:
    """How large the images must be, where in the map to look, and what of the picture is seen from there."""
    nominal = fields(model.network(), model.variables)[target]
    reach = max(nominal.size)
    looked = model.mean, model.std

    def on(network: Network, position) -> Plan:
        side = network.image_shape[0]
        return Plan(network, target, position, side + 2 * transforms.margin(side), reach, *looked)

    if objective == "mean":
        return on(model.network(), None), None
    for side in range(max(SMALLEST, -(-reach // SIDE) * SIDE), model.input_size, SIDE):
        try:
            network = model.network((side, side, 3))
        except InputError:  # too small for what comes later in the network
            continue
        seen = fields(network, model.variables)[target]
        middles = []
        for ends in seen:
            inside = ends[:, 1] - ends[:, 0] == reach
            off = np.where(inside, np.abs(ends.sum(1) - side), np.inf)
            middles.append((int(off.argmin()), off.min()))
        (h, down), (w, right) = middles
        if max(down, right) < np.inf:
            return on(network, (h, w)), seen.box(h, w)
    height, width = model.layers[target].positions
    return on(model.network(), (height // 2, width // 2)), nominal.box(height // 2, width // 2)


def _ascend(
    plan: Plan,
    variables: Variables,
    offsets: Masks,
    features: Features,
    steps: int,
    seed: int,
    done: Callable[[], object],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures without margins (F, h, w, 3), values (F,), and values at the beginning, of one chunk."""
    directions = jnp.asarray(features.matrix(plan.network.layers[plan.target].outputs))
    spectra = jnp.stack([_noise(plan.canvas, label, seed) for label in replace(features, position=None).identities])
    given = variables, offsets, directions
    _, start = _seen(plan, *given, spectra)
    state = _OPTIMIZER.init(spectra)
    # a loop in Python: on a CPU, convolutions' gradients are many times slower in JAX's own (jax issue 12868)
    for step in range(steps):
        spectra, state = _step(plan, *given, spectra, state, transforms.draw(seed, step, plan.reach))
        done()
    pictures, values = _seen(plan, *given, spectra)
    return np.asarray(pictures), np.asarray(values), np.asarray(start)


_OPTIMIZER = optax.adam(RATE)


def _noise(canvas: int, label: str, seed: int) -> np.ndarray:
    """The spectrum that a feature begins with."""
    word = int.from_bytes(hashlib.sha256(label.encode()).digest()[:8])
    shape = fourier.spectrum_shape(canvas, canvas)
    return np.random.default_rng([seed, word]).standard_normal(shape, np.float32) * np.float32(NOISE)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames=("spectra", "state"))
def _step(
    plan: Plan,
    variables: Variables,
    offsets: Masks,
    directions: Array,
    spectra: Array,
    state: optax.OptState,
    view: View,
) -> tuple[Array, optax.OptState]:
    def loss(spectra: Array) -> Array:
        pictures = transforms.look(fourier.decode(spectra, plan.canvas), view, plan.network.image_shape[0])
        return -_values(plan, variables, offsets, directions, pictures).sum()

    updates, state = _OPTIMIZER.update(jax.grad(loss)(spectra), state)
    return spectra + updates, state  # pyright: ignore[reportOperatorIssue]


@functools.partial(jax.jit, static_argnames="plan")
def _seen(plan: Plan, variables: Variables, offsets: Masks, directions: Array, spectra: Array) -> tuple[Array, Array]:
    """The pictures without margins, and the features' values on them."""
    pictures = transforms.look(fourier.decode(spectra, plan.canvas), STILL, plan.network.image_shape[0])
    return pictures, _values(plan, variables, offsets, directions, pictures)


def _values(plan: Plan, variables: Variables, offsets: Masks, directions: Array, pictures: Array) -> Array:
    """Each feature's value on its own picture: pictures (F, h, w, 3) from 0 to 1 -> (F,)."""
    images = (pictures - jnp.asarray(plan.mean)) / jnp.asarray(plan.std)
    maps = maps_in(plan.network, plan.target, variables, offsets, directions, images)
    own = maps[jnp.arange(len(maps)), jnp.arange(len(maps))]
    return own.mean((1, 2)) if plan.position is None else own[:, *plan.position]
