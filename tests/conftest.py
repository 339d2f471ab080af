"""One small network in Flax and in PyTorch with the same weights, and five images that are not square."""

import os
from typing import NamedTuple

# Most of the time goes into compiling. Without LLVM's optimizations it is a third less, and with the older emitters a
# third of that; a version of JAX that has no others takes no notice of the second flag. (Read when jax starts; a value
# of one's own, even an empty one, takes the place of both.)
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
)

import hypothesis
import numpy as np
import pytest
import torch

import jaxcircuits as jc
from tests.twins import Small, TorchSmall, random_variables
from weights_conversion import to_torch

hypothesis.settings.register_profile("jaxcircuits", deadline=None)  # the first example compiles
hypothesis.settings.load_profile("jaxcircuits")


class Pair(NamedTuple):
    model: jc.Model
    torch: torch.nn.Module
    images: np.ndarray


@pytest.fixture(scope="session")
def small() -> Pair:
    options = {"train": False}
    variables = random_variables(Small(), (1, 13, 13, 3), **options)
    model = jc.Model(Small(), variables, name="small", apply_options=options, input_size=13)
    twin = TorchSmall().eval()
    twin.load_state_dict({name: torch.from_numpy(value) for name, value in to_torch(variables).items()})
    images = np.random.default_rng(1).standard_normal((5, 13, 11, 3), np.float32)
    return Pair(model, twin, images)


@pytest.fixture(scope="session")
def alexnet() -> jc.Model:
    """With torchvision's pretrained convolutions."""
    return jc.load("alexnet")
