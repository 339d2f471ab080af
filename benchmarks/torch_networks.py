"""AlexNet's and VGG's convolutions in PyTorch, with the weights of a `jaxcircuits.Model`."""

import torch
from torch import nn

from jaxcircuits import Model

POOLS = {"alexnet": {"features.0": (3, 2), "features.3": (3, 2)}, "vgg16": {}}
VGG16_POOLS = ("features.2", "features.7", "features.14", "features.21")


class Convolutions(nn.Module):
    """A chain of convolutions, ReLUs and max-pools that ends with the target layer's output.

    Attributes:
        names: of the convolutions, the target's last.
        stages: one `nn.Sequential` a convolution, of what precedes it (ReLU and pooling).
        convolutions: the convolutions themselves.
    """

    def __init__(self, model: Model, target: str) -> None:
        super().__init__()
        pools = POOLS[model.name] | ({name: (2, 2) for name in VGG16_POOLS} if model.name == "vgg16" else {})
        state = model.state_dict()
        layers = [layer for layer in model.layers.values() if layer.kind == "conv"]
        self.names = [layer.name for layer in layers[: [layer.name for layer in layers].index(target) + 1]]
        self.stages: list[nn.Sequential] = []
        self.convolutions: list[nn.Conv2d] = []
        for i, layer in enumerate(layers[: len(self.names)]):
            before = self.names[i - 1] if i else ""
            parts: list[nn.Module] = [nn.ReLU()] if i else []
            if before in pools:
                parts.append(nn.MaxPool2d(*pools[before]))
            self.stages.append(nn.Sequential(*parts))
            channels = layer.inputs * layer.groups
            padding = layer.padding[0][0]
            conv = nn.Conv2d(channels, layer.outputs, layer.window, layer.strides, padding, groups=layer.groups)
            conv.weight.data = torch.from_numpy(state[f"{layer.name}.weight"].copy())
            conv.bias.data = torch.from_numpy(state[f"{layer.name}.bias"].copy())  # pyright: ignore
            self.convolutions.append(conv)
        self.registered = nn.ModuleList([*self.stages, *self.convolutions])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage, convolution in zip(self.stages, self.convolutions, strict=True):
            x = convolution(stage(x))
        return x
