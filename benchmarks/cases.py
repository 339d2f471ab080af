"""What is timed, and how much arithmetic it is."""

import math
from dataclasses import dataclass

from jaxcircuits.criteria.force import STEPS
from jaxcircuits.faithfulness import KEEPS
from jaxcircuits.taps import Network

NAMES = ("jaxcircuits", "reference", "strong")


@dataclass(frozen=True)
class Case:
    """Scoring F channels of a layer over N images, or the 13-level curve of one circuit.

    Attributes:
        what: "snip", "snip whole_set", "actgrad", "force KEEP" or "curve".
        width: channels of the layer; more features than that repeat them.
    """

    model: str
    layer: str
    what: str
    features: int
    images: int
    width: int = 256

    @property
    def name(self) -> str:
        return f"{self.model} {self.layer}, {self.what}, F = {self.features}, N = {self.images}"

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(i % self.width for i in range(self.features))

    @property
    def engines(self) -> tuple[str, ...]:
        """What is timed: of FORCE there is no strong baseline, and of VGG 16's ActGrad no reference: its maps
        of every kernel do not fit into memory beside the others."""
        if self.model == "vgg16" and self.what == "actgrad":
            return NAMES[::2]
        return NAMES[:2] if self.keep else NAMES

    @property
    def keep(self) -> float | None:
        """What FORCE keeps."""
        kind, _, keep = self.what.partition(" ")
        return float(keep) if kind == "force" else None


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
    *(Case("alexnet", f"features.{n}", f"force {keep}", 4, 4) for n in (6, 10) for keep in (0.1, 0.01)),
    *(
        Case("vgg16", f"features.{n}", *size)
        for n in (17, 28)
        for size in (("snip", 64, 2), ("actgrad", 64, 2), ("curve", 1, 1))
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
    with the target's one channel. FORCE: SNIP, and once more for each round.
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
    if case.keep:
        total *= 1 + STEPS
    return 2 * total / 1e9
