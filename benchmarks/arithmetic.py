"""AlexNet's scores by a plain program in NumPy, all of it matrix products, in any arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

import jaxcircuits as jc

Scores = dict[str, np.ndarray]  # {layer: (F, I, O)}
Round = Callable[[np.ndarray], np.ndarray]


def to_bits(mantissa: int) -> Round:
    """Rounds float32 to so many explicit mantissa bits, to nearest, ties to even: TF32 has 10, bfloat16 7."""
    drop = np.uint32(23 - mantissa)
    half = np.uint32((1 << (23 - mantissa - 1)) - 1)

    def rounded(array: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        return (((bits + half + ((bits >> drop) & np.uint32(1))) >> drop) << drop).view(np.float32)

    return rounded


# name -> type, and what happens to the operands of a product
ARITHMETIC: dict[str, tuple[type, Round]] = {
    "float64": (np.float64, lambda array: array),
    "float32": (np.float32, lambda array: array),
    "tf32": (np.float32, to_bits(10)),
    "bfloat16": (np.float32, to_bits(7)),
}


class Convolution:
    """One of AlexNet's, with the ReLU and the pooling before it, for one image; all of it is matrix products."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray, stride: int, padding: int, pooled: bool, rounded: Round):
        self.outputs, self.inputs, self.size, _ = weight.shape
        self.weight = weight.reshape(self.outputs, self.inputs, -1).transpose(1, 2, 0)  # (I, K, O)
        self.bias, self.stride, self.padding, self.pooled, self.q = bias, stride, padding, pooled, rounded

    def forward(self, x: np.ndarray, first: bool) -> np.ndarray:
        """Maps x (I, H, W), before the ReLU unless they are pixels, to (O, H, W)."""
        self.on = np.ones_like(x, bool) if first else x > 0
        self.before = x.shape
        x = x * self.on
        if self.pooled:
            windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2]
            most = windows.reshape(*windows.shape[:3], 9).argmax(-1)
            rows, columns = (2 * np.arange(n) for n in most.shape[1:])
            self.won = (rows[:, None] + most // 3) * x.shape[2] + columns + most % 3  # (I, h, w) places in a map
            x = np.take_along_axis(x.reshape(len(x), -1), self.won.reshape(len(x), -1), 1).reshape(most.shape)
        self.shape = x.shape
        x = np.pad(x, ((0, 0), *[(self.padding,) * 2] * 2))
        windows = np.lib.stride_tricks.sliding_window_view(x, (self.size,) * 2, (1, 2))
        windows = windows[:, :: self.stride, :: self.stride]
        self.high, self.wide = windows.shape[1:3]
        self.patches = np.ascontiguousarray(windows).reshape(self.inputs, -1, self.size**2)  # (I, P, K)
        self.contributions = self.q(self.patches) @ self.q(self.weight)  # (I, P, O)
        return (self.contributions.sum(0) + self.bias).T.reshape(self.outputs, self.high, self.wide)

    def by_weight(self, g: np.ndarray) -> np.ndarray:
        """w dL/dw (F, I, K, O) for g (F, P, O)."""
        patches = self.q(self.patches).transpose(0, 2, 1).reshape(-1, g.shape[1])
        products = patches @ self.q(g).transpose(1, 0, 2).reshape(g.shape[1], -1)
        return products.reshape(*self.weight.shape[:2], *g.shape[::2]).transpose(2, 0, 1, 3) * self.weight

    def actgrad(self, g: np.ndarray) -> np.ndarray:
        """The mean over positions of |A g|: (F, I, O)."""
        a, b = self.q(np.abs(self.contributions)).transpose(2, 0, 1), self.q(np.abs(g)).transpose(2, 1, 0)
        return (a @ b).transpose(2, 1, 0) / g.shape[1]

    def backward(self, g: np.ndarray) -> np.ndarray:
        """dL/dx (F, I, H, W)."""
        flat = self.weight.reshape(-1, self.outputs).T  # (O, I K)
        grown = (self.q(g) @ self.q(flat)).reshape(len(g), self.high, self.wide, self.inputs, self.size, self.size)
        i, h, w = self.shape
        x = np.zeros((len(g), i, h + 2 * self.padding, w + 2 * self.padding), g.dtype)
        for row, column in np.ndindex(self.size, self.size):
            rows = slice(row, row + self.stride * self.high, self.stride)
            columns = slice(column, column + self.stride * self.wide, self.stride)
            x[:, :, rows, columns] += grown[..., row, column].transpose(0, 3, 1, 2)
        x = x[:, :, self.padding : self.padding + h, self.padding : self.padding + w]
        if self.pooled:
            spread = np.zeros((len(g), i, self.before[1] * self.before[2]), g.dtype)
            f, c = np.ogrid[: len(g), :i]
            np.add.at(spread, (f[..., None], c[..., None], self.won.reshape(1, i, -1)), x.reshape(len(g), i, -1))
            x = spread.reshape(len(g), *self.before)
        return x * self.on


def plain(
    model: jc.Model, images: np.ndarray, layer: str, channels: Sequence[int], arithmetic: str
) -> dict[str, Scores]:
    """All criteria's scores, {criterion: {layer: (F, I, O)}}, of features of AlexNet, an image at a time."""
    kind, rounded = ARITHMETIC[arithmetic]
    state = {name: value.astype(kind) for name, value in model.state_dict().items() if name.startswith("features.")}
    geometry = {0: (4, 2, False), 3: (1, 2, True), 6: (1, 1, True), 8: (1, 1, False), 10: (1, 1, False)}
    names = [f"features.{n}" for n in geometry if n <= int(layer.partition(".")[2])]
    layers = [
        Convolution(state[f"{name}.weight"], state[f"{name}.bias"], *geometry[int(name[9:])], rounded)
        for name in names
    ]  # fmt: skip
    found: dict[str, Scores] = {name: dict.fromkeys(names, 0) for name in ("snip", "whole set", "actgrad")}  # pyright: ignore
    for image in images:
        x = image.transpose(2, 0, 1).astype(kind)
        for number, convolution in enumerate(layers):
            x = convolution.forward(x, number == 0)
        maps = x.reshape(len(x), -1)
        g = np.zeros((len(channels), maps.shape[1], len(x)), kind)
        for f, channel in enumerate(channels):
            g[f, :, channel] = np.sign(maps[channel])
        for name, convolution in reversed(list(zip(names, layers, strict=True))):
            by_weight = convolution.by_weight(g)
            found["snip"][name] = found["snip"][name] + np.abs(by_weight).mean(2)
            found["whole set"][name] = found["whole set"][name] + by_weight
            found["actgrad"][name] = found["actgrad"][name] + convolution.actgrad(g)
            if name != names[0]:
                g = convolution.backward(g)
                g = g.reshape(*g.shape[:2], -1).transpose(0, 2, 1)
    found["whole set"] = {name: np.abs(total).mean(2) for name, total in found["whole set"].items()}
    return {criterion: {name: s / len(images) for name, s in scores.items()} for criterion, scores in found.items()}
