"""torchvision as the judge of models and conversion."""

import sys
from types import ModuleType

import torch

_definitions: list[torch.library.Library] = []  # an operator lives as long as its Library


def torchvision() -> ModuleType:
    """Imports torchvision, also the published one beside a CPU build of PyTorch, which lacks two operators."""
    try:
        import torchvision
    except RuntimeError:  # operator torchvision::nms does not exist
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _definitions.append(library)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision

    return torchvision
