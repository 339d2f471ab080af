"""What is known of a layer: its name, its geometry, and whether it can be scored. No Flax hooks here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax import Array, lax

# Images of the run in which layers are seen: more than one, so that what does not depend on them is told apart.
IMAGES = 2
# An attribute of functions that multiply as `lax` does.
SAME = "computes_the_same"

Variables = Mapping[str, Any]
Arrays = Mapping[str, Array | np.ndarray]
Masks = dict[str, Array]
Pair = tuple[int, int]


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
    def ungrouped(self) -> bool:
        """Whether it is a convolution that every input channel reaches every output channel through."""
        return self.kind == "conv" and self.groups == 1

    @property
    def kernels(self) -> int:
        return self.inputs * self.outputs

    def weight(self, variables: Variables) -> Array:
        """The layer's weights as (K, I, O)."""
        return jnp.asarray(_at(variables["params"], self.path)["kernel"]).reshape(-1, self.inputs, self.outputs)

    def kernel(self, variables: Variables) -> Array:
        """A convolution's weights as (h, w, I, O)."""
        return self.weight(variables).reshape(*self.window, self.inputs, self.outputs)

    def weight_by_output(self, variables: Variables) -> Array:
        """The layer's weights as (O, K, I)."""
        return self.weight(variables).transpose(2, 0, 1)

    def bias(self, variables: Variables) -> Array:
        """The layer's bias (O,), zeros if it has none."""
        parameters = _at(variables["params"], self.path)
        return jnp.asarray(parameters["bias"]) if "bias" in parameters else jnp.zeros(self.outputs)


def before(layers: Mapping[str, Layer], target: str) -> dict[str, Layer]:
    """Those that run before the target, in call order."""
    return dict(itertools.takewhile(lambda item: item[0] != target, layers.items()))


def strip_rows(height: int, width: int, most: int) -> int:
    """Rows of positions taken together: they divide the height, and hold at most so many positions if they can."""
    rows = max(n for n in range(1, height + 1) if height % n == 0 and (n * width <= most or n == 1))
    return rows if rows * width >= most // 4 else height  # which may have no good divisor


def _as_maps(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """One image's shape as (H, W, C): dense layers also see vectors (C,) and sequences (T, C)."""
    *positions, channels = shape
    height, width = positions if len(positions) == 2 else (math.prod(positions), 1)
    return height, width, channels


def _at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    for part in path:
        tree = tree[part]
    return tree


def _stored_shape(variables: Variables, path: tuple[str, ...]) -> tuple[int, ...]:
    try:
        return tuple(_at(variables["params"], path)["kernel"].shape)
    except KeyError:
        return ()


class Call(NamedTuple):
    """One call of a convolution or dense module, as seen in an abstract run.

    Attributes:
        module: the linen module.
        kernel, input, output: shapes, with the batch.
        tapped: whether what it sows gets out, and its kernel is the stored one.
    """

    module: nn.Conv | nn.Dense
    kernel: tuple[int, ...]
    input: tuple[int, ...]
    output: tuple[int, ...]
    tapped: bool


def layer_of(path: tuple[str, ...], calls: list[Call], variables: Variables) -> Layer:
    """Geometry from the first call; what cannot be scored gets a `trouble` that names the layer."""
    first, name = calls[0], ".".join(path)
    module, kernel, stored = first.module, first.kernel, _stored_shape(variables, path)
    conv = isinstance(module, nn.Conv)
    window = tuple(kernel[:-2]) if conv else (1, 1)
    strides, dilation = (_pair(getattr(module, a, 1), len(window)) for a in ("strides", "kernel_dilation"))
    trouble = ""
    if own := _overridden(type(module)):
        trouble = f"layer {name!r} is a {type(module).__name__}, whose own {own} may use its kernel in another way"
    elif own := _own_product(module):
        trouble = f"layer {name!r} has a product of its own ({own}), which may use its kernel in another way"
    elif stored != tuple(kernel) or not first.tapped:
        trouble = (
            f"layer {name!r} stands inside nn.scan, nn.vmap, nn.map_variables, nn.WeightNorm or nn.SpectralNorm, with "
            "kernels that it does not store"
        )
    elif len(calls) > 1:
        trouble = f"layer {name!r} is called {len(calls)} times, so that its kernels have no one input and output"
    elif len(window) != 2:
        trouble = f"layer {name!r} is a {len(window)}-D convolution; expected a 2-D one"
    elif conv and getattr(module, "mask", None) is not None:
        trouble = f"layer {name!r} carries a mask of its own; multiply it into the kernel"
    elif conv and _pair(module.input_dilation, 2) != (1, 1):
        trouble = f"layer {name!r} dilates its input, which is not supported"
    elif module.dtype not in (None, jnp.float32):
        trouble = f"layer {name!r} computes in {jnp.dtype(module.dtype).name}; expected float32 (dtype=None)"
    elif conv and len(first.input) != 4:
        trouble = f"layer {name!r} sees an input of shape {first.input}; expected (N, H, W, C)"
    elif first.input[0] == 1:
        trouble = f"layer {name!r} sees one input for all images; expected one for each"
    elif first.input[0] != IMAGES:
        trouble = f"layer {name!r} sees {first.input[0] / IMAGES:g} inputs for one image; expected one"
    elif not math.prod(first.output):
        trouble = f"layer {name!r} has a map without positions for images of this size; expected larger ones"
    padding = ((0, 0), (0, 0))
    if conv and not trouble:
        padding = _padding(module.padding, first.input[1:3], window, strides, dilation)
        if padding is None or min(itertools.chain(*padding)) < 0:
            trouble = f"layer {name!r} pads with {module.padding!r}; expected zeros (numbers, 'SAME' or 'VALID')"
            padding = None
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
        input_shape=tuple(first.input[1:]),
        output_shape=tuple(first.output[1:]),
        trouble=trouble,
    )


def _overridden(kind: type) -> str:
    """What a subclass of linen's layers does in a way of its own, such as to standardise its kernel."""
    own = itertools.takewhile(lambda one: one not in (nn.Conv, nn.Dense), kind.__mro__)
    return next((name for one in own for name in ("__call__", "param", "setup") if name in vars(one)), "")


def _own_product(module: nn.Conv | nn.Dense) -> str:
    """The option by which a layer is told to multiply in another way than `lax` does."""
    plain = (None, lax.conv_general_dilated, lax.dot_general)
    for option in ("conv_general_dilated", "conv_general_dilated_cls", "dot_general", "dot_general_cls"):
        given = getattr(module, option, None)
        if given not in plain and not hasattr(given, SAME):
            return option
    return "" if module.promote_dtype is promote_dtype else "promote_dtype"


def _pair(value, length: int) -> tuple[int, ...]:
    """A number or sequence of numbers, as linen modules take them, as `length` numbers."""
    return (value or 1,) * length if isinstance(value, int) or value is None else tuple(value)


def _padding(padding, size: tuple[int, ...], window, strides, dilation) -> Any:
    """A convolution's padding in numbers, ((top, bottom), (left, right)); None if it is none of zeros."""
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            return None
        reach = [(w - 1) * d + 1 for w, d in zip(window, dilation, strict=True)]
        return tuple(lax.padtype_to_pads(size, reach, strides, padding))
    if isinstance(padding, int):
        return ((padding, padding),) * 2
    return tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding)
