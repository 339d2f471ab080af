"""The only room that hooks into Flax: run a linen module, hand out what enters each layer, add to what leaves it.

A *tap* is a layer's input in one forward pass; a *probe* is a zero added to its output, whose gradient is the layer's.
Both go through the module's own `sow` and `perturb`, so that they work under `nn.jit`, `nn.remat`, `jit` and `vmap`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import errors, traverse_util
from flax.core import unfreeze
from jax import Array, lax

from jaxcircuits import live, masked, sparse
from jaxcircuits.errors import InputError
from jaxcircuits.jaxprs import stored_kernels
from jaxcircuits.layers import IMAGES, Call, Layer, Variables, layer_of
from jaxcircuits.threads import pool

TAPS, PROBES, PINNED, LIVE, TOGETHER, TERMS, GIVEN, GAINS, MARKED = (
    f"jaxcircuits_{name}"
    for name in ("taps", "probes", "pinned", "live", "together", "terms", "given", "gains", "marked")
)
# statistics that are to move, and random numbers that are not there
TRAINING = (errors.ModifyScopeVariableError, errors.InvalidRngError, errors.TraceContextError)
NORMALISATIONS = (nn.BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm, nn.RMSNorm)


@dataclass(frozen=True, eq=False)
class Network:
    """What `jit` treats as constant of a model: the linen module, how it is applied, and its layers in call order."""

    module: nn.Module
    options: tuple[tuple[str, Any], ...]
    image_shape: tuple[int, int, int]
    layers: Mapping[str, Layer]

    def run(
        self,
        variables: Variables,
        images: Array,
        probes: Mapping[str, Array] | None = None,
        *,
        together: Mapping[str, sparse.Back] | None = None,
        terms: Mapping[str, masked.Terms | masked.Whole] | None = None,
        inputs: Mapping[str, Array] | None = None,
        gains: Mapping[str, Array] | None = None,
        pinned: bool = False,
        circuit: bool = False,
    ) -> dict[str, Array]:
        """One forward pass.

        Args:
            variables: of the module, possibly with masked weights.
            images: (N, H, W, 3).
            probes: {layer: (N, H, W, O)}, added to the layers' outputs.
            together: {convolution: how its input gradient is made for many features together}.
            terms: {convolution: by which it is computed for a circuit, or `Whole`}; its own kernel is not masked.
            inputs: {layer: (N, H, W, C)}, what enters these layers instead of what would.
            gains: {layer: (N, h, w, C)}, what the channels are multiplied with that enter these layers, each number in
                its part of the map.
            pinned: make every normalisation the identity and pin every layer's output to 1 where positive, 0 elsewhere.
                The gradient passes a pin untouched: with the variables of `ones`, and nothing between layers that makes
                positive numbers zero, it is non-zero exactly where a path leads.
            circuit: many kernels are zero, and ungrouped convolutions leave out the channels that are; the same to
                rounding.

        Returns:
            {layer: its input, (N, H, W, C)}. Under `jit`, whatever the caller does not use is never computed.
        """
        given = {
            (PROBES, *self.layers[name].path, "probe"): probe.reshape(len(images), *self.layers[name].output_shape)
            for name, probe in (probes or {}).items()
        }
        # as variables, because nn.jit must see them
        given |= {(TOGETHER, *self.layers[name].path, "back"): back for name, back in (together or {}).items()}
        given |= {(TERMS, *self.layers[name].path, "terms"): found for name, found in (terms or {}).items()}
        given |= {
            (GIVEN, *self.layers[name].path, "input"): x.reshape(len(images), *self.layers[name].input_shape)
            for name, x in (inputs or {}).items()
        }
        given |= {(GAINS, *self.layers[name].path, "gain"): gain for name, gain in (gains or {}).items()}
        variables = {**variables, **traverse_util.unflatten_dict(given)}
        # nn.jit caches its traces by the mutable collections, not by interceptors: each needs one of its own
        if pinned:
            own, inner = [PINNED], _pin
        elif circuit:
            own, inner = [LIVE], functools.partial(_live, self.layers)
        else:
            own, inner = [], functools.partial(_by_parts, self.layers)
        with nn.intercept_methods(_tap), nn.intercept_methods(inner):
            _, state = self.module.apply(variables, images, mutable=[TAPS, *own], **dict(self.options))
        taps: dict = traverse_util.flatten_dict(state[TAPS])
        return {
            name: taps[*layer.path, "input"].reshape(len(images), *layer.input_maps)
            for name, layer in self.layers.items()
            if not layer.trouble and (*layer.path, "input") in taps
        }

    def probes(self, names: tuple[str, ...], count: int) -> dict[str, Array]:
        """Zeros that `run` adds to the outputs of these layers, for `count` images."""
        return {n: jnp.zeros((count, *self.layers[n].positions, self.layers[n].outputs)) for n in names}


def _layer_call(context: nn.module.InterceptorContext) -> bool:
    return context.method_name == "__call__" and isinstance(context.module, (nn.Conv, nn.Dense))


def _input(args, kwargs) -> Array:
    return args[0] if args else kwargs["inputs"]


def _tap(call, args, kwargs, context):
    if not _layer_call(context):
        return call(*args, **kwargs)
    if context.module.has_variable(GIVEN, "input"):
        args, kwargs = (context.module.get_variable(GIVEN, "input"),), {}
    if context.module.has_variable(GAINS, "gain"):
        x, gain = _input(args, kwargs), context.module.get_variable(GAINS, "gain")
        args, kwargs = (x * _spread(gain, x.shape),), {}
    y = call(*args, **kwargs)
    context.module.sow(TAPS, "input", _input(args, kwargs), init_fn=lambda: None, reduce_fn=lambda _, new: new)
    probed = context.module.has_variable(PROBES, "probe")
    return context.module.perturb("probe", y, collection=PROBES) if probed else y


def _spread(gain: Array, shape: tuple[int, ...]) -> Array:
    for axis, size in enumerate(shape[1:-1], 1):
        gain = jnp.take(gain, jnp.arange(size) * gain.shape[axis] // size, axis)
    return gain


def _by_parts(layers: Mapping[str, Layer], call, args, kwargs, context):
    module = context.module
    if not _layer_call(context):
        return call(*args, **kwargs)
    by_terms, together = module.has_variable(TERMS, "terms"), module.has_variable(TOGETHER, "back")
    if not by_terms and not together:
        return call(*args, **kwargs)
    x, parameters = _input(args, kwargs), module.variables["params"]
    layer = layers[".".join(module.path)]
    kernel, bias = parameters["kernel"], parameters.get("bias", jnp.zeros(layer.outputs))
    if by_terms:
        return masked.convolution(layer, x, kernel, bias, module.get_variable(TERMS, "terms"))
    return sparse.convolution(layer, x, kernel, module.get_variable(TOGETHER, "back")) + bias


def _live(layers: Mapping[str, Layer], call, args, kwargs, context):
    layer = layers.get(".".join(context.module.path)) if _layer_call(context) else None
    if layer is None or not layer.ungrouped or layer.trouble:
        return call(*args, **kwargs)
    parameters = context.module.variables["params"]
    y = live.convolution(layer, _input(args, kwargs), parameters["kernel"])
    return y + parameters["bias"] if "bias" in parameters else y


def _pin(call, args, kwargs, context):
    if context.method_name == "__call__" and isinstance(context.module, NORMALISATIONS):
        return args[0] if args else kwargs["x"]
    y = call(*args, **kwargs)
    return y + lax.stop_gradient((y > 0) - y) if _layer_call(context) else y


def describe(module: nn.Module, variables: Variables, image_shape: tuple[int, int, int], options: Mapping) -> Network:
    """Find a module's layers, in call order, by an abstract run on images of shape (H, W, C).

    Raises:
        InputError: the module does not run on such an image with these variables.
    """
    calls: dict[tuple[str, ...], list[Call]] = {}

    def note(call, args, kwargs, context):
        if not _layer_call(context):
            return call(*args, **kwargs)
        x = _input(args, kwargs)
        y = call(*args, **kwargs)
        kernel = context.module.get_variable("params", "kernel")
        sown = context.module.sow(TAPS, "kernel", kernel)
        seen = Call(context.module.clone(parent=None), kernel.shape, x.shape, y.shape, sown)
        calls.setdefault(context.module.path, []).append(seen)
        return y

    def run(variables, images):
        return module.apply(variables, images, mutable=[TAPS], **options)[1].get(TAPS, {})

    image = jax.ShapeDtypeStruct((IMAGES, *image_shape), jnp.float32)
    try:
        # without jit, or a module under nn.jit that was traced before would not be seen again
        with nn.intercept_methods(note), jax.disable_jit():
            jaxpr, sown = jax.make_jaxpr(run, return_shape=True)(variables, image)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, TRAINING):
            reason += "; it may be in training mode: for linen see Model's apply_options, for nnx call eval() first"
        raise InputError(
            f"{type(module).__name__} does not run on an image of shape {image_shape} with these variables: {reason}"
        ) from error
    stored = stored_kernels(jaxpr.jaxpr, sown, variables)
    calls = {path: [call._replace(tapped=call.tapped and path in stored) for call in of] for path, of in calls.items()}
    layers = {".".join(path): layer_of(path, seen, variables) for path, seen in calls.items()}
    return Network(module, tuple(options.items()), image_shape, layers)


def batch_norms(network: Network, variables: Variables) -> dict[str, tuple[str, ...]]:
    """The BatchNorms that are given a layer's output as it is: {layer: module path}."""
    outputs: list[tuple[str, Array]] = []
    found = {}

    def note(call, args, kwargs, context):
        if context.method_name == "__call__" and isinstance(context.module, nn.BatchNorm):
            x = args[0] if args else kwargs["x"]
            found.update({name: context.module.path for name, y in outputs if y is x})
        y = call(*args, **kwargs)
        if _layer_call(context):
            outputs.append((".".join(context.module.path), y))
        return y

    def run(variables, images):
        return network.module.apply(variables, images, mutable=[TAPS], **dict(network.options))

    image = jax.ShapeDtypeStruct((1, *network.image_shape), jnp.float32)
    with nn.intercept_methods(note), jax.disable_jit():  # as in `describe`
        jax.eval_shape(run, variables, image)
    return found


LAYER, NORM = "jaxcircuits layer ", "jaxcircuits norm "
_TRACES = itertools.count()


class Traced(NamedTuple):
    """A network's operations between its layers and normalisations.

    Attributes:
        jaxpr: of (variables, images) -> the module's output; layers and normalisations are calls of functions with the
            names `LAYER` + path and `NORM` + path, the path joined with dots, whose last operand is the input.
        leaves: where the variables' leaves are that come before the images among its operands.
        norms: {path joined: the linen module of a normalisation and the options of its call}.
    """

    jaxpr: Any
    leaves: list[tuple[str, ...]]
    norms: dict[str, tuple[nn.Module, dict[str, Any]]]


def traced(network: Network, variables: Variables, image_shape: tuple[int, ...]) -> Traced:
    """The operations of a network on images of shape (N, H, W, C), from variables or their shapes."""
    norms: dict[str, tuple[nn.Module, dict[str, Any]]] = {}

    def mark(call, args, kwargs, context):
        module, name = context.module, ".".join(context.module.path)
        normalises = isinstance(module, NORMALISATIONS)
        sound = name in network.layers and not network.layers[name].trouble
        if context.method_name != "__call__" or not (normalises or (_layer_call(context) and sound)):
            return call(*args, **kwargs)
        options = {key: value for key, value in kwargs.items() if key not in ("x", "inputs")}
        if len(args) > 1:  # BatchNorm's
            options["use_running_average"] = args[1]
        if normalises:
            norms[name] = module.clone(parent=None, name=None), options
        x = args[0] if args else next(kwargs[key] for key in ("x", "inputs") if key in kwargs)
        shape = jax.eval_shape(lambda x: call(x, **options), x)

        def stand_in(x):
            return jnp.zeros(shape.shape, shape.dtype)

        stand_in.__name__ = (NORM if normalises else LAYER) + name
        return jax.jit(stand_in)(x)

    # nn.jit takes the trace of another call, or of a module of the same shapes, unless its variables have other names
    marked = f"{MARKED}_{next(_TRACES)}"
    modules = {path[1:-1] for path in traverse_util.flatten_dict(unfreeze(dict(variables)))}
    marks = traverse_util.unflatten_dict({(marked, *path, ".".join((marked, *path))): 0.0 for path in modules})

    def run(variables, images):
        given = {**variables, **marks}
        return network.module.apply(given, images, mutable=[marked], **dict(network.options))[0]

    def trace():
        with nn.intercept_methods(mark):
            return jax.make_jaxpr(run)(variables, jax.ShapeDtypeStruct(image_shape, jnp.float32))

    with pool(1, "trace") as thread:  # where no other interceptor sees it, for it may be asked for within a run
        jaxpr = thread.submit(trace).result()
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
    return Traced(jaxpr, [tuple(part.key for part in path) for path, _ in leaves], norms)
