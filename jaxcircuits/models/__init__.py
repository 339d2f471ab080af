"""Plain Flax networks whose modules carry torchvision's names; they know nothing of circuits."""

from collections.abc import Callable

import flax.linen as nn

from jaxcircuits.models import (
    alexnet,
    convnext,
    efficientnet,
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
    **efficientnet.VARIANTS,
    **mnasnet.VARIANTS,
    **mobilenet.VARIANTS,
    **regnet.VARIANTS,
    **resnet.VARIANTS,
    **shufflenet.VARIANTS,
    **squeezenet.VARIANTS,
    **vgg.VARIANTS,
}

# where it is not 224 and 256: the images' side, and what the shorter side of a picture is resized to
INPUT_SIZES: dict[str, tuple[int, int]] = {**efficientnet.INPUT_SIZES}
