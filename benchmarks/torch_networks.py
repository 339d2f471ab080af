"""AlexNet's and VGG's convolutions in PyTorch, with the weights of a `jaxcircuits.Model`."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from jaxcircuits import Model

# Window and stride of the max-pool that follows a convolution and its ReLU.
POOLS: dict[str, dict[str, tuple[int, int]]] = {
    "alexnet": {"features.0": (3, 2), "features.3": (3, 2)},
    "vgg16": {name: (2, 2) for name in ("features.2", "features.7", "features.14", "features.21")},
}


class Convolutions(nn.Module):
    """A chain of convolutions, ReLUs and max-pools that ends with the target layer's output.

    Args:
        model: whose convolutions are such a chain.
        target: the last of them.
        pools: {convolution: (window, stride)}, by default those of the model's name.

    Attributes:
        names: of the convolutions, the target's last.
        pools: of what precedes each convolution; None where there is no pool.
        convolutions: the convolutions themselves.
    """

    def __init__(self, model: Model, target: str, pools: Mapping[str, tuple[int, int]] | None = None) -> None:
        super().__init__()
        pools = POOLS[model.name] if pools is None else pools
        state = model.state_dict()
        layers = [layer for layer in model.layers.values() if layer.kind == "conv"]
        self.names = [layer.name for layer in layers[: [layer.name for layer in layers].index(target) + 1]]
        self.pools = [None, *(pools.get(name) for name in self.names[:-1])]
        self.convolutions: list[nn.Conv2d] = []
        for layer in layers[: len(self.names)]:
            channels = layer.inputs * layer.groups
            padding = layer.padding[0][0]
            conv = nn.Conv2d(channels, layer.outputs, layer.window, layer.strides, padding, groups=layer.groups)
            conv.weight.data = torch.from_numpy(state[f"{layer.name}.weight"].copy())
            conv.bias.data = torch.from_numpy(state[f"{layer.name}.bias"].copy())  # pyright: ignore
            self.convolutions.append(conv)
        self.registered = nn.ModuleList(self.convolutions)

    def stage(self, number: int, x: Tensor) -> Tensor:
        """What precedes a convolution: ReLU and pool of the one before."""
        if number == 0:
            return x
        pool = self.pools[number]
        return functional.max_pool2d(x.relu(), *pool) if pool else x.relu()

    def forward(self, x: Tensor) -> Tensor:
        for number, convolution in enumerate(self.convolutions):
            x = convolution(self.stage(number, x))
        return x
