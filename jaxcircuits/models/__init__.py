"""Plain Flax networks whose modules carry torchvision's names; they know nothing of circuits."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from jaxcircuits.models import (
    alexnet,
    convnext,
    densenet,
    efficientnet,
    googlenet,
    inception,
    inception_v1,
    mnasnet,
    mobilenet,
    regnet,
    resnet,
    shufflenet,
    squeezenet,
    vgg,
)

# torchvision's name -> what makes the module; each takes `num_classes`
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    **alexnet.VARIANTS,
    **convnext.VARIANTS,
    **densenet.VARIANTS,
    **efficientnet.VARIANTS,
    **googlenet.VARIANTS,
    **inception.VARIANTS,
    **inception_v1.VARIANTS,
    **mnasnet.VARIANTS,
    **mobilenet.VARIANTS,
    **regnet.VARIANTS,
    **resnet.VARIANTS,
    **shufflenet.VARIANTS,
    **squeezenet.VARIANTS,
    **vgg.VARIANTS,
}
# what the images look like, as in `Model`, where it is not what torchvision's usually do
SEEN: dict[str, Mapping[str, Any]] = {
    **convnext.SEEN,
    **efficientnet.SEEN,
    **inception.SEEN,
    **inception_v1.SEEN,
    # of which torchvision has weights of its later way of training alone
    **{
        name: {"resize_size": 232}
        for name in ("mnasnet0_75", "mnasnet1_3", "resnext101_64x4d", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0")
    },
    "regnet_y_128gf": {"resize_size": 224, "interpolation": "bicubic"},
}
# modules that only training runs, so that weights may lack them
AUXILIARY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(googlenet.VARIANTS, googlenet.AUXILIARY),
    **dict.fromkeys(inception.VARIANTS, inception.AUXILIARY),
}
# regular expressions of names in older files -> what the modules are called
RENAMED: dict[str, Mapping[str, str]] = {
    **dict.fromkeys(densenet.VARIANTS, densenet.RENAMED),
}
# what torchvision does not have
ELSEWHERE = frozenset(inception_v1.VARIANTS)
