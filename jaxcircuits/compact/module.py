"""A circuit's network without its dead channels, as a linen module and its variables."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import Array, lax

from jaxcircuits.circuit import Circuit
from jaxcircuits.compact.narrow import Leaf, Walk
from jaxcircuits.compact.parts import Known, Part, pick, whole
from jaxcircuits.compact.plan import Plan, Slice, plan
from jaxcircuits.layers import SAME
from jaxcircuits.model import Model
from jaxcircuits.taps import LAYER, NORM, Network, Traced, traced

Path = tuple[str, ...]
# what a compact model takes over
_SEEN = ("input_size", "resize_size", "interpolation", "channels", "mean", "std", "weights")


class _Reached(Exception):
    """The feature is computed; what comes after it does not matter."""


class Skeleton:
    """What a compact network does between its layers: the whole network's operations, on the channels that are left."""

    def __init__(self, network: Network, found: Plan):
        self.network, self.plan = network, found
        self.whole: set[str] = set()  # normalisations that are called for several sets of channels
        self.shapes = jax.eval_shape(lambda: found.variables)
        self.traced: Callable[[tuple[int, ...]], Traced] = functools.cache(
            lambda shape: traced(self.network, self.shapes, shape)
        )

    def run(
        self,
        images: Array,
        layer: Callable[[Slice, Array], Array],
        norm: Callable[[str, nn.Module, dict[str, Any], Array, np.ndarray | None], Array],
        leaf: Callable[[Path], Array],
    ) -> Array:
        """The feature: (N, H, W, 1), or (N, 1) in a dense layer.

        Args:
            images: (N, H, W, C).
            layer: runs what is left of a layer on the channels that it reads.
            norm: runs a normalisation by its name, its module and options, on the channels of the given numbers or, if
                there are none, on all.
            leaf: gives a variable of neither.
        """
        trace = self.traced(images.shape)
        result = []

        def run_layer(name: str, x: Known, shape: tuple[int, ...]) -> Known:
            left = self.plan.slices.get(name)
            if left is None:
                return Part(jnp.zeros((*shape[:-1], 0)), len(shape) - 1, shape[-1:], np.empty(0, int))
            y = layer(left, pick(x, left.reads))
            if name == self.plan.target:
                result.append(y)
                raise _Reached
            return Part(y, y.ndim - 1, shape[-1:], left.gives)

        def run_norm(name: str, x: Known, shape: tuple[int, ...]) -> Known:
            module, options = trace.norms[name]
            narrow = isinstance(module, nn.BatchNorm) and name not in self.whole
            if narrow and isinstance(x, Part) and x.axis == module.axis % len(shape):
                return x._replace(value=norm(name, module, options, x.value, x.index))
            return norm(name, module, options, whole(x), None)

        calls = {LAYER + name: functools.partial(run_layer, name) for name in self.network.layers}
        calls |= {NORM + name: functools.partial(run_norm, name) for name in trace.norms}
        try:
            Walk(calls, leaf).run(trace.jaxpr.jaxpr, trace.jaxpr.consts, [*map(Leaf, trace.leaves), images])
        except _Reached:
            return result[0]
        raise AssertionError(f"{self.plan.target!r} was not reached")

    def variables(self) -> dict[str, Any]:
        """The compact module's variables, of the whole network's."""
        given: dict[Path, Any] = traverse_util.flatten_dict(self.plan.variables)
        found: dict[Path, Any] = {}
        channels: dict[str, list[int] | None] = {}

        def layer(left: Slice, x: Array) -> Array:
            name, kernel = left.layer.name, left.kernel
            found["params", name, "kernel"] = kernel if left.layer.kind == "conv" else kernel[0, 0]
            if left.bias is not None:
                found["params", name, "bias"] = left.bias
            return jnp.zeros((len(x), *left.layer.output_shape[:-1], kernel.shape[-1]))

        def norm(name: str, module: nn.Module, options: dict[str, Any], x: Array, index: np.ndarray | None) -> Array:
            now = None if index is None else index.tolist()
            if channels.setdefault(name, now) != now:
                self.whole.add(name)
            for path, value in given.items():
                if ".".join(path[1:-1]) == name:
                    found[path[0], name, path[-1]] = value if index is None else np.asarray(value)[index]
            return x

        def leaf(path: Path) -> Array:
            found[_place(path)] = given[path]
            return given[path]

        image = jax.ShapeDtypeStruct((1, *self.network.image_shape), jnp.float32)
        before = len(self.whole)
        jax.eval_shape(lambda images: self.run(images, layer, norm, leaf), image)
        return traverse_util.unflatten_dict(found) if len(self.whole) == before else self.variables()


def _place(path: Path) -> Path:
    """Where a variable of the whole network stands in the compact one, whose modules are not nested."""
    collection, *modules, name = path
    return (collection, ".".join(modules), name) if modules else path


def convolution(x: Array, kernel: Array, *arguments: Any, feature_group_count: int = 1, **options: Any) -> Array:
    """`lax.conv_general_dilated`, with zeros up to numbers of channels for which XLA on a CPU has fast code.

    Inputs are read by fours, outputs made by sixteens: 60 take 1.5 times as long as 64 there, and 24 of three inputs 15
    times as long as of four.
    """
    inputs, outputs = kernel.shape[-2:]
    more_in, more_out = -inputs % 4, -outputs % 16
    if more_out > 8:
        more_out = 0  # half of them would be zeros
    if inputs < 4 and outputs + more_out > 32:
        more_in = 0
    if feature_group_count > 1 or jax.default_backend() != "cpu":
        more_in = more_out = 0
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more_in)])
    kernel = jnp.pad(kernel, [(0, 0)] * (kernel.ndim - 2) + [(0, more_in), (0, more_out)])
    y = lax.conv_general_dilated(x, kernel, *arguments, feature_group_count=feature_group_count, **options)
    return y[..., :outputs]


setattr(convolution, SAME, True)


class Holder(nn.Module):
    """The variables {(collection, leaf): shape} of a module that is no layer and no normalisation."""

    shapes: Mapping[tuple[str, str], tuple[int, ...]]

    @nn.compact
    def __call__(self) -> dict[tuple[str, str], Array]:
        return _variables(self, self.shapes)


def _variables(module: nn.Module, shapes: Mapping[tuple[str, str], tuple[int, ...]]) -> dict[tuple[str, str], Array]:
    """A module's own {(collection, leaf): value}."""

    def value(collection: str, name: str, shape: tuple[int, ...]) -> Array:
        if collection == "params":
            return module.param(name, nn.initializers.zeros, shape)
        return module.variable(collection, name, jnp.zeros, shape).value

    return {place: value(*place, shape) for place, shape in shapes.items()}


class Compact(nn.Module):
    """A circuit's network: images (N, H, W, C) -> its feature (N, H, W, 1), or (N, 1) in a dense layer.

    Its layers and normalisations are those of the whole network, by their names, with the channels that the circuit
    needs.
    """

    skeleton: Skeleton

    @nn.compact
    def __call__(self, images: Array) -> Array:
        shapes: dict[Path, Any] = traverse_util.flatten_dict(self.skeleton.shapes)
        holders: dict[Path, Mapping[tuple[str, str], Array]] = {}
        norms: dict[str, nn.Module] = {}

        def layer(left: Slice, x: Array) -> Array:
            old, features = left.layer, left.kernel.shape[-1]
            options: dict[str, Any] = {"use_bias": left.bias is not None, "name": old.name}
            if old.kind == "dense":
                return nn.Dense(features, **options)(x)
            options |= {"kernel_dilation": old.dilation, "feature_group_count": left.groups}
            options |= {"conv_general_dilated": convolution}
            return nn.Conv(features, old.window, old.strides, old.padding, **options)(x)

        def norm(name: str, module: nn.Module, options: dict[str, Any], x: Array, index: np.ndarray | None) -> Array:
            if name not in norms:  # else it is called again
                norms[name] = module.clone(parent=self, name=name)
            return norms[name](x, **options)

        def leaf(path: Path) -> Array:
            modules = path[1:-1]
            if modules not in holders:
                own = {(p[0], p[-1]): shapes[p].shape for p in shapes if p[1:-1] == modules}
                holders[modules] = Holder(own, name=".".join(modules))() if modules else _variables(self, own)
            return holders[modules][path[0], path[-1]]

        return self.skeleton.run(images, layer, norm, leaf)


def compact(model: Model, circuit: Circuit) -> Model:
    """A smaller network that computes a circuit's feature, without dead channels and what comes after the feature.

    It computes what the network with the circuit's masks and offsets does, but for rounding, for every image. A channel
    is left out if it cannot reach the feature, if it is zero for every image where it is read, or if it is the same for
    every image and position and is read by a layer that pads nothing: what it adds stands in biases then. Other
    channels that do not depend on the image lose their kernels and stay.

    Args:
        model: the full network.
        circuit: of that network.

    Returns:
        A model whose layers have the full network's names and whose last one, that of the feature, has one channel: the
        feature. It takes the same images.

    Raises:
        InputError: the circuit is of another network, or weights of its layers are missing.
    """
    skeleton = Skeleton(model.network(), plan(model, circuit))
    seen = {key: getattr(model, key) for key in _SEEN}
    return Model(Compact(skeleton), skeleton.variables(), name=model.name, **seen)
