"""torchvision as the judge of models and conversion."""

from types import ModuleType

import torch

_definitions: list[torch.library.Library] = []  # an operator lives as long as its Library


def torchvision() -> ModuleType:
    """Imports torchvision, also the published one beside a CPU build of PyTorch, which lacks two operators."""
    if not _definitions and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _definitions.append(library)
    import torchvision

    return torchvision
