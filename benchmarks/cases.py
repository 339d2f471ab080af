"""What is timed, and how much arithmetic it is."""

import math
from dataclasses import dataclass

from jaxcircuits.taps import Network


@dataclass(frozen=True)
class Case:
    """Scoring F channels of a layer over N images, or the 13-level curve of one circuit."""

    model: str
    layer: str
    what: str  # "snip", "snip whole_set", "actgrad" or "curve"
    features: int
    images: int

    @property
    def name(self) -> str:
        return f"{self.model} {self.layer}, {self.what}, F = {self.features}, N = {self.images}"

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(range(self.features))


QUICK = tuple(
    Case("alexnet", "features.10", what, features, images)
    for what, features, images in (
        ("snip", 1, 2),
        ("snip", 64, 2),
        ("snip whole_set", 64, 4),
        ("actgrad", 64, 2),
        ("curve", 1, 16),
    )
)
SCORES = ("snip", "actgrad")
FULL = (
    *QUICK,
    *(Case("alexnet", f"features.{n}", what, 64, 2) for n in (3, 6, 8) for what in SCORES),
    *(Case("alexnet", "features.10", "snip", features, 2) for features in (16, 256)),
    *(Case("vgg16", f"features.{n}", what, 16, 1) for n in (17, 28) for what in SCORES),
)


def gigaflops(network: Network, case: Case) -> float:
    """Multiply-adds times two that dense scoring needs for one image and feature: 1e9 floating-point operations.

    Each layer before the target has its weight gradient (or ActGrad's product) and, but for the first, its input
    gradient; forward pass and target layer are shared or small.
    """
    names = list(network.layers)
    inner = [network.layers[name] for name in names[: names.index(case.layer)]]
    total = 0
    for first, layer in zip([True] + [False] * len(inner), inner, strict=False):
        positions, window = math.prod(layer.positions), math.prod(layer.window)
        total += positions * layer.kernels * (1 if case.what == "actgrad" else window)
        total += 0 if first else positions * layer.kernels * window
    return 2 * total / 1e9
