"""Plain Flax networks whose modules carry torchvision's names; they know nothing of circuits."""

from collections.abc import Callable

import flax.linen as nn

from jaxcircuits.models import alexnet, resnet, squeezenet, vgg

# torchvision's name -> what makes the module; each takes `num_classes`
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    **alexnet.VARIANTS,
    **resnet.VARIANTS,
    **squeezenet.VARIANTS,
    **vgg.VARIANTS,
}
