"""The only room that hooks into Flax: run a linen module and hand out what enters each layer, add probes to what leaves it.

A *tap* is a layer's input in one forward pass; a *probe* is a zero added to its output, whose gradient is the layer's.
Both go through the module's own `sow` and `perturb`, so that they work under `nn.jit`, `nn.remat`, `jit` and `vmap`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import Array, lax

from jaxcircuits.errors import InputError

Variables = Mapping[str, Any]
Pair = tuple[int, int]

TAPS, PROBES, PINNED = "jaxcircuits_taps", "jaxcircuits_probes", "jaxcircuits_pinned"
NORMALISATIONS = (nn.BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Layer:
    """A convolution or dense layer and its geometry; a dense layer is a convolution with a window of one.

    Attributes:
        name: module path joined with dots, as in torchvision (`features.10`, `layer1.0.conv1`).
        kind: "conv" or "dense".
        window, strides, padding, dilation: height and width of each; padding in numbers, (before, after).
        groups: G; input channel i of a kernel is channel i *within its group*.
        inputs, outputs: I (of a group) and O; there are I * O kernels.
        input_shape, output_shape: of one image, as the module has them.
        trouble: why the layer cannot be scored or be a target; empty if it can.
    """

    name: str
    path: tuple[str, ...]
    kind: str
    window: Pair
    strides: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair
    groups: int
    inputs: int
    outputs: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    trouble: str = ""

    @property
    def positions(self) -> Pair:
        """Height and width of the output; (1, 1) for a dense layer on vectors."""
        return _as_maps(self.output_shape)[:2]  # pyright: ignore[reportReturnType]

    @property
    def input_maps(self) -> tuple[int, int, int]:
        """(H, W, C) of the input."""
        return _as_maps(self.input_shape)

    @property
    def kernels(self) -> int:
        return self.inputs * self.outputs

    def weight(self, variables: Variables) -> Array:
        """The layer's weights as (K, I, O)."""
        return jnp.asarray(_at(variables["params"], self.path)["kernel"]).reshape(-1, self.inputs, self.outputs)

    def bias(self, variables: Variables) -> Array:
        """The layer's bias (O,), zeros if it has none."""
        parameters = _at(variables["params"], self.path)
        return jnp.asarray(parameters["bias"]) if "bias" in parameters else jnp.zeros(self.outputs)


def _as_maps(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """One image's shape as (H, W, C): dense layers also see vectors (C,) and sequences (T, C)."""
    *positions, channels = shape
    height, width = positions if len(positions) == 2 else (math.prod(positions), 1)
    return height, width, channels


def _at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    for part in path:
        tree = tree[part]
    return tree


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
        pinned: bool = False,
    ) -> dict[str, Array]:
        """One forward pass.

        Args:
            variables: of the module, possibly with masked weights.
            images: (N, H, W, 3).
            probes: {layer: (N, H, W, O)}, added to the layers' outputs.
            pinned: make every normalisation the identity and pin every layer's output to 1 where positive, 0 elsewhere.
                The gradient passes a pin untouched: with the variables of `ones` nothing cancels, saturates or
                underflows, and a gradient is non-zero exactly where a path leads.

        Returns:
            {layer: its input, (N, H, W, C)}. Under `jit`, whatever the caller does not use is never computed.
        """
        given = {
            (*self.layers[name].path, "probe"): probe.reshape(len(images), *self.layers[name].output_shape)
            for name, probe in (probes or {}).items()
        }
        variables = {**variables, PROBES: traverse_util.unflatten_dict(given)}
        # nn.jit caches its traces by the mutable collections, not by interceptors: a pinned run needs one of its own
        collections = [TAPS, PINNED] if pinned else [TAPS]
        with nn.intercept_methods(_tap), nn.intercept_methods(_pin) if pinned else nullcontext():
            _, state = self.module.apply(variables, images, mutable=collections, **dict(self.options))
        taps = traverse_util.flatten_dict(state[TAPS])
        return {
            name: taps[*layer.path, "input"].reshape(len(images), *layer.input_maps)
            for name, layer in self.layers.items()
            if (*layer.path, "input") in taps
        }

    def probes(self, names: tuple[str, ...], count: int) -> dict[str, Array]:
        """Zeros that `run` adds to the outputs of these layers, for `count` images."""
        return {n: jnp.zeros((count, *self.layers[n].positions, self.layers[n].outputs)) for n in names}


def _layer_call(context: nn.module.InterceptorContext) -> bool:
    return context.method_name == "__call__" and isinstance(context.module, (nn.Conv, nn.Dense))


def _tap(call, args, kwargs, context):
    if not _layer_call(context):
        return call(*args, **kwargs)
    x = args[0] if args else kwargs["inputs"]
    y = call(*args, **kwargs)
    context.module.sow(TAPS, "input", x, init_fn=lambda: None, reduce_fn=lambda _, new: new)
    probed = context.module.has_variable(PROBES, "probe")
    return context.module.perturb("probe", y, collection=PROBES) if probed else y


def _pin(call, args, kwargs, context):
    if context.method_name == "__call__" and isinstance(context.module, NORMALISATIONS):
        return args[0] if args else kwargs["x"]
    y = call(*args, **kwargs)
    return y + lax.stop_gradient((y > 0) - y) if _layer_call(context) else y


def ones(network: Network, variables: Variables, masks: Mapping[str, Array]) -> Variables:
    """Variables for a pinned run: kernels equal mask / (kept weights of that output), biases 0, all else positive.

    Args:
        network: whose layers they are.
        variables: of the module; only the shapes are used.
        masks: {layer: (I, O) bool}; layers that are not named keep all their kernels.
    """
    kernels = {}
    for name, layer in network.layers.items():
        if layer.trouble:
            continue
        mask = jnp.asarray(masks.get(name, jnp.ones((layer.inputs, layer.outputs))), jnp.float32)
        share = mask / jnp.maximum(mask.sum(0), 1) / math.prod(layer.window)
        kernels[*layer.path, "kernel"] = share

    def positive(path, leaf):
        if path in kernels:
            return jnp.broadcast_to(kernels[path], leaf.shape)
        if path[-1] == "bias":
            return jnp.zeros_like(leaf)
        return jnp.full_like(leaf, 1 / math.prod(leaf.shape[:-1])) if leaf.ndim > 1 else jnp.ones_like(leaf)

    flat = traverse_util.flatten_dict(variables["params"])
    params = traverse_util.unflatten_dict({path: positive(path, jnp.asarray(leaf)) for path, leaf in flat.items()})
    return {**variables, "params": params}


def with_masks(network: Network, variables: Variables, masks: Mapping[str, Array]) -> Variables:
    """The variables with each named layer's weights multiplied by its mask, {layer: (I, O)}: a circuit's network."""
    params = traverse_util.flatten_dict(variables["params"])
    for name, mask in masks.items():
        path = (*network.layers[name].path, "kernel")
        params[path] = params[path] * mask
    return {**variables, "params": traverse_util.unflatten_dict(params)}


def describe(module: nn.Module, variables: Variables, image_shape: tuple[int, int, int], options: Mapping) -> Network:
    """Find a module's layers, in call order, by an abstract run on one image of shape (H, W, C).

    Raises:
        InputError: the module does not run on such an image with these variables.
    """
    calls: dict[tuple[str, ...], list[dict]] = {}

    def note(call, args, kwargs, context):
        if not _layer_call(context):
            return call(*args, **kwargs)
        x = args[0] if args else kwargs["inputs"]
        y = call(*args, **kwargs)
        sown = context.module.sow(TAPS, "seen", x)
        kernel = context.module.get_variable("params", "kernel")
        seen = {"module": context.module.clone(parent=None), "x": x.shape, "y": y.shape, "sown": sown}
        calls.setdefault(context.module.path, []).append({**seen, "kernel": kernel.shape})
        return y

    def run(variables, images):
        return module.apply(variables, images, mutable=[TAPS], **options)

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    try:
        # without jit, or a module under nn.jit that was traced before would not be seen again
        with nn.intercept_methods(note), jax.disable_jit():
            jax.eval_shape(run, variables, image)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{type(module).__name__} does not run on an image of shape {image_shape} with these variables: {reason}"
        ) from error
    layers = {}
    for path, seen in calls.items():
        outer = _shape_at(variables, path)
        layers[".".join(path)] = _layer(path, seen, outer)
    return Network(module, tuple(options.items()), image_shape, layers)


def _shape_at(variables: Variables, path: tuple[str, ...]) -> tuple[int, ...]:
    try:
        return tuple(_at(variables["params"], path)["kernel"].shape)
    except KeyError:
        return ()


def _layer(path: tuple[str, ...], calls: list[dict], stored: tuple[int, ...]) -> Layer:
    """Geometry from the first call; what cannot be scored gets a `trouble` that names the layer."""
    first, name = calls[0], ".".join(path)
    module, kernel = first["module"], first["kernel"]
    conv = isinstance(module, nn.Conv)
    window = tuple(kernel[:-2]) if conv else (1, 1)
    strides, dilation = (_pair(getattr(module, a, 1), len(window)) for a in ("strides", "kernel_dilation"))
    trouble = ""
    if stored != tuple(kernel) or not first["sown"]:
        trouble = f"layer {name!r} stands inside nn.scan or nn.vmap, where its calls share one name; unroll the loop"
    elif len(calls) > 1:
        trouble = f"layer {name!r} is called {len(calls)} times, so that its kernels have no one input and output"
    elif len(window) != 2:
        trouble = f"layer {name!r} is a {len(window)}-D convolution; expected a 2-D one"
    elif conv and getattr(module, "mask", None) is not None:
        trouble = f"layer {name!r} carries a mask of its own; multiply it into the kernel"
    elif conv and _pair(module.input_dilation, 2) != (1, 1):
        trouble = f"layer {name!r} dilates its input, which is not supported"
    elif conv and len(first["x"]) != 4:
        trouble = f"layer {name!r} sees an input of shape {first['x']}; expected (N, H, W, C)"
    padding = ((0, 0), (0, 0))
    if conv and not trouble:
        padding = _padding(module.padding, first["x"][1:3], window, strides, dilation)
        if padding is None:
            trouble = f"layer {name!r} pads with {module.padding!r}; expected zeros (numbers, 'SAME' or 'VALID')"
    return Layer(
        name=name,
        path=path,
        kind="conv" if conv else "dense",
        window=window,  # pyright: ignore[reportArgumentType]
        strides=strides,  # pyright: ignore[reportArgumentType]
        padding=padding or ((0, 0), (0, 0)),
        dilation=dilation,  # pyright: ignore[reportArgumentType]
        groups=module.feature_group_count if conv else 1,
        inputs=kernel[-2],
        outputs=kernel[-1],
        input_shape=tuple(first["x"][1:]),
        output_shape=tuple(first["y"][1:]),
        trouble=trouble,
    )


def _pair(value, length: int) -> tuple[int, ...]:
    """A number or sequence of numbers, as linen modules take them, as `length` numbers."""
    return (value or 1,) * length if isinstance(value, int) or value is None else tuple(value)


def _padding(padding, size: tuple[int, ...], window, strides, dilation):
    """A convolution's padding in numbers, ((top, bottom), (left, right)); None if it is none of zeros."""
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            return None
        reach = [(w - 1) * d + 1 for w, d in zip(window, dilation, strict=True)]
        return tuple(lax.padtype_to_pads(size, reach, strides, padding))
    if isinstance(padding, int):
        return ((padding, padding),) * 2
    return tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding)
