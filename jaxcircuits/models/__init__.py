"""Plain Flax networks whose modules carry torchvision's names; they know nothing of circuits."""

from collections.abc import Callable

import flax.linen as nn

from jaxcircuits.models.alexnet import alexnet
from jaxcircuits.models.vgg import vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "alexnet": alexnet,
    "vgg11": vgg11,
    "vgg11_bn": vgg11_bn,
    "vgg13": vgg13,
    "vgg13_bn": vgg13_bn,
    "vgg16": vgg16,
    "vgg16_bn": vgg16_bn,
    "vgg19": vgg19,
    "vgg19_bn": vgg19_bn,
}
