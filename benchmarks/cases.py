"""What is timed, and how much arithmetic it is."""

import math
from dataclasses import dataclass

from jaxcircuits.faithfulness import KEEPS
from jaxcircuits.taps import Network


@dataclass(frozen=True)
class Case:
    """Scoring F channels of a layer over N images, or the 13-level curve of one circuit."""

    model: str
    layer: str
    what: str  # "snip", "snip whole_set", "actgrad" or "curve"
    features: int
    images: int
    width: int = 256  # channels of the layer; more features than that repeat them

    @property
    def name(self) -> str:
        return f"{self.model} {self.layer}, {self.what}, F = {self.features}, N = {self.images}"

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(i % self.width for i in range(self.features))


QUICK = tuple(
    Case("alexnet", "features.10", what, features, images)
    for what, features, images in (
        ("snip", 1, 4),
        ("snip", 64, 4),
        ("snip whole_set", 64, 8),
        ("actgrad", 64, 4),
        ("curve", 1, 16),
    )
)
SIZES = (("snip", 64, 4), ("snip whole_set", 64, 16), ("actgrad", 64, 4), ("curve", 1, 16))
FULL = (
    *(Case("alexnet", f"features.{n}", *size) for n in (10, 8, 6, 3) for size in SIZES),
    *(Case("alexnet", "features.10", what, f, 4) for what in ("snip", "actgrad") for f in (1, 16, 256)),
    *(
        Case("vgg16", f"features.{n}", what, features, 1)
        for n in (17, 28)
        for what, features in (("snip", 64), ("actgrad", 64), ("curve", 1))
    ),
)
SCALING = tuple(
    Case("alexnet", "features.10", what, features, images)
    for what in ("snip", "actgrad")
    for features in (1, 4, 16, 64, 256, 1024)
    for images in (1, 4, 16)
)


def gigaflops(network: Network, case: Case) -> float:
    """Multiply-adds times two that one image and feature needs if nothing is left out: 1e9 floating-point operations.

    Scores: each layer before the target has its weight gradient (or ActGrad's product) and, but for the first, its
    input gradient; forward pass and target layer are shared or small. The curve: a forward pass for each keep level,
    with the target's one channel.
    """
    names = list(network.layers)
    inner = [network.layers[name] for name in names[: names.index(case.layer)]]
    total = 0
    for number, layer in enumerate(inner):
        positions, window = math.prod(layer.positions), math.prod(layer.window)
        products = window if case.what != "actgrad" else 1
        if number and case.what != "curve":
            products += window
        total += positions * layer.kernels * products
    if case.what == "curve":
        target = network.layers[case.layer]
        total += math.prod(target.positions) * target.inputs * math.prod(target.window)
        total *= len(KEEPS)
    return 2 * total / 1e9
