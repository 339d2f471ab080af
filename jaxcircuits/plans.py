"""What a pass over the images computes, and by which way: the layers on their support or as a whole, how many features
together."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxcircuits import winograd
from jaxcircuits.chunks import Sizes, largest
from jaxcircuits.criteria.common import Criterion, Statistic
from jaxcircuits.data import batches
from jaxcircuits.features import Place
from jaxcircuits.gradients import supports, tiles_of
from jaxcircuits.layers import Masks, Variables, before
from jaxcircuits.taps import Network

# With more than this share of the products not zero, gathering them is slower than multiplying zeros as well.
SPARSE = 0.25
# Up to FEW features share too little to look for their support, and fewer than MANY in networks with maps of more
# numbers than LARGE, whose gradients miss the cache. If everything is multiplied there, FEW features' gradients are in
# memory at a time, or MANY if they share much.
FEW, MANY, LARGE = 16, 32, 1 << 18

Sums = dict[str, Array]


class Weights(NamedTuple):
    """A network's weights in the forms that a pass takes.

    Attributes:
        own: of the layers to score, as their statistics take them.
        tiles: of those whose input gradients are made by tiles; a circuit has its own.
    """

    own: Masks
    tiles: Masks


class Plan(NamedTuple):
    """What a compiled pass depends on besides its arguments.

    Attributes:
        network: whose layers they are.
        target: the features' layer.
        layers: those to score, in call order.
        criterion, objective, place: what is computed of the features.
        precision: of matrix products, as `jax.default_matmul_precision` calls it.
        granularity: of the scores.
        sparse: the layers computed on the support that all features share; the same to rounding.
        circuit: one feature at a time is scored in its circuit, whose kernels are those of the variables.
        live: channels that are zero there are left out; the same to rounding.
    """

    network: Network
    target: str
    layers: tuple[str, ...]
    criterion: Criterion
    objective: str
    place: Place
    precision: str
    granularity: str = "kernel"
    sparse: tuple[str, ...] = ()
    circuit: bool = False
    live: bool = False

    def statistic(self, name: str) -> Statistic:
        """How this layer's sum is made."""
        if name == self.target:
            return self.criterion.target
        return self.criterion.on_support if name in self.sparse else self.criterion.dense

    def weights(self, variables: Variables, size: Sizes) -> Weights:
        """The network's, for device calls of this size; made once for all images."""
        layers = {name: self.network.layers[name] for name in self.layers}
        own = {n: la.weight_by_output(variables) if n in self.sparse else la.weight(variables)
               for n, la in layers.items()}  # fmt: skip
        if self.sparse or self.circuit:
            return Weights(own, {})
        images = at_a_time(self, size.together) * size.images
        return Weights(own, tiles_of(self.network, variables, self.target, images, ready=True))

    def axis(self, name: str) -> int:
        """The features' in this layer's sum: the one that grows with them."""
        few, more = (self.statistic(name).shape(self.network.layers[name], features) for features in (1, 2))
        return [a != b for a, b in zip(few, more, strict=True)].index(True)

    def nothing(self, features: int) -> Sums:
        """The sums over no images."""
        shapes = {name: self.statistic(name).shape(self.network.layers[name], features) for name in self.layers}
        return {name: jnp.zeros(shape) for name, shape in shapes.items()}


arranged = jax.jit(Plan.weights, static_argnums=(0, 2))


def sparse_layers(plan: Plan, variables: Variables, features: int, images) -> tuple[str, ...]:
    """Which layers so many features should compute on their support: a fixed rule, looked up on the first image.

    It pays on a CPU with enough features to share the search for the support, more of them in networks with large
    layers, whose gradients miss the cache, and where ReLUs and pools leave most products zero, of those that there
    are by tiles. It is all of them or none, for gradients change their order in memory in between.
    """
    enough = features >= MANY if _large(plan) else features > FEW
    if plan.layers == (plan.target,) or not enough or jax.default_backend() != "cpu":
        return ()
    block, _ = next(iter(batches(images, 1)))
    with jax.default_matmul_precision(plan.precision):
        shares = _support_shares(plan.network, plan.target, variables, jnp.asarray(block))
    layers = {name: plan.network.layers[name] for name in shares}
    work = {name: layer.kernels * math.prod((*layer.window, *layer.positions)) for name, layer in layers.items()}
    left = sum(work[name] * float(share) for name, share in shares.items())
    dense = sum(work[name] * winograd.share(layer, features) for name, layer in layers.items())
    return tuple(shares) if left < SPARSE * dense else ()


def most(plan: Plan) -> int | None:
    """Features whose gradients a CPU has in memory together where everything is multiplied and layers are large; they
    share what the forward pass has made."""
    if plan.sparse or not _large(plan) or jax.default_backend() != "cpu":
        return None
    return MANY if plan.criterion.shared else FEW


def _large(plan: Plan) -> bool:
    """Whether a layer before the target is."""
    return largest(before(plan.network.layers, plan.target).values()) > LARGE


@functools.partial(jax.jit, static_argnames=("network", "target"))
def _support_shares(network: Network, target: str, variables: Variables, image: Array) -> dict[str, Array]:
    """The share of gradients that are not zero, of each ungrouped convolution before the target."""
    return {name: on.mean() for name, on in supports(network, variables, target, image).items()}


def at_a_time(plan: Plan, features: int) -> int:
    """How many of the features of a call have their gradients in memory together; all, where they cannot be divided."""
    few = most(plan) or features
    return next((n for n in range(min(few, features), few // 2, -1) if features % n == 0), features)
