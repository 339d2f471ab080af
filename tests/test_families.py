"""Circuits through every family's branches, gates and groups: scores and relevant kernels against plain twins."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest

import jaxcircuits as jc
from jaxcircuits.models import ARCHITECTURES, convnext, densenet, googlenet, mobilenet, regnet, resnet, shufflenet
from jaxcircuits.models.common import ConvNorm, SqueezeExcite
from tests import twins
from tests.test_models import random_oracle
from tests.test_paths import brute_force, positive
from weights_conversion import to_flax

SIZE = 64
# a feature within a branch, behind a gate or in groups; layers before it, some of them small
CASES = {
    "convnext_tiny": ("features.2.1", ("features.0.0", "features.1.0.block.0", "features.1.2.block.0")),
    "densenet121": (
        "features.denseblock1.denselayer3.conv2",
        ("features.conv0", "features.denseblock1.denselayer1.conv2"),
    ),
    "efficientnet_b0": (
        "features.2.0.block.1.0",
        ("features.0.0", "features.1.0.block.1.fc1", "features.1.0.block.0.0"),
    ),
    "googlenet": ("inception3a.branch2.1.conv", ("conv1.conv", "inception3a.branch2.0.conv")),
    "inception_v3": ("Mixed_5b.branch5x5_2.conv", ("Conv2d_1a_3x3.conv", "Mixed_5b.branch5x5_1.conv")),
    "mnasnet0_5": ("layers.8.1.layers.3", ("layers.0", "layers.3", "layers.8.0.layers.6")),
    "mobilenet_v2": ("features.3.conv.1.0", ("features.0.0", "features.1.conv.0.0", "features.2.conv.2")),
    "mobilenet_v3_small": ("features.2.block.0.0", ("features.0.0", "features.1.block.1.fc2", "features.1.block.2.0")),
    "regnet_y_400mf": (
        "trunk_output.block2.block2-0.proj.0",
        ("stem.0", "trunk_output.block1.block1-0.f.se.fc1", "trunk_output.block1.block1-0.f.b.0"),
    ),
    "resnet18": ("layer2.0.downsample.0", ("conv1", "layer1.1.conv2")),
    "shufflenet_v2_x0_5": ("stage2.2.branch2.5", ("conv1.0", "stage2.0.branch1.0", "stage2.1.branch2.3")),
    "squeezenet1_1": ("features.4.expand3x3", ("features.0", "features.3.squeeze", "features.4.squeeze")),
}  # fmt: skip


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("architecture", CASES)
def test_scores_are_those_of_a_plain_twin(architecture):
    """In double precision, for in deep networks rounding turns ReLUs on and off; to 1e-4 of each layer's largest."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, SIZE + 11, SIZE + 11, 3), np.float32)
    network = random_oracle(architecture, images, rng).double()
    for part in network.modules():  # or a ReLU right after a convolution would overwrite what the twin differentiates
        if hasattr(part, "inplace"):
            part.inplace = False
    state = {key: tensor.numpy() for key, tensor in network.state_dict().items()}
    state = {key: v.astype(np.float32) if v.dtype == np.float64 else v for key, v in state.items()}
    made = ARCHITECTURES[architecture]()
    module = made.copy(transform_input=True) if hasattr(made, "transform_input") else made
    template = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 224, 224, 3), np.float32))
    model = jc.Model(module, to_flax(state, template).variables)
    target, layers = CASES[architecture]
    layers = (*layers, target)
    outputs = model.layers[target].outputs
    features = jc.Features(target, [outputs // 2])
    direction = np.eye(outputs)[outputs // 2]
    for criterion, twin in (("snip", twins.snip), ("actgrad", twins.actgrad)):
        found = jc.score(model, images, features, criterion=criterion, layers=layers)
        small = [n for n in layers if model.layers[n].kernels < 5000] if criterion == "actgrad" else layers
        expected = twin(network, images.astype(np.float64), target, direction, small)
        for name, wanted in expected.items():
            wanted = np.where(found.relevant[name][0], wanted.T, 0)
            error = np.abs(found.values[name][0] - wanted).max()
            assert wanted.max() > 0 and error <= 1e-4 * wanted.max(), (criterion, name, error / wanted.max())


class Blocks(nn.Module):
    """Some families' own blocks one after another, narrow enough for brute force."""

    kind: str

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), padding=1, name="stem")(x))
        if self.kind == "branches":
            x = resnet.Block(4, 2, False, name="residual")(x, False)
            x = googlenet.Inception(1, (1, 2), (1, 2), 1, name="inception")(x, False)
            x = shufflenet.Unit(8, 2, name="halved")(x, False)
            x = shufflenet.Unit(8, 1, name="shuffled")(x, False)
        elif self.kind == "gates":
            hard = partial(ConvNorm, activation=nn.hard_swish)
            gate = partial(SqueezeExcite, 2, gate=nn.hard_sigmoid)
            x = mobilenet.InvertedResidual(4, 6, 3, 1, hard, gate, name="inverted")(x, False)
            x = mobilenet.LinearBottleneck(4, 2, 2, name="linear")(x, False)
            x = regnet.Bottleneck(4, 1, 2, True, name="bottleneck")(x, False)
        else:
            x = convnext.Block(name="convnext")(x)
        return nn.Conv(3, (2, 2), name="target")(x)


@pytest.mark.parametrize("kind", ["branches", "gates", "norms"])
def test_nothing_is_lost_in_the_families_blocks(kind):
    """Relevant kernels are those without which the feature moves, where weights, biases and inputs are positive."""
    module = Blocks(kind)
    image = np.random.default_rng(0).uniform(0.5, 1.5, (1, 8, 8, 3)).astype(np.float32)
    model = jc.Model(module, twins.random_variables(module, image.shape), input_size=8)
    plain = jc.Model(module, positive(module), input_size=8)
    features = jc.Features("target", [1])
    relevant = jc.relevant_kernels(model, features, layers=tuple(model.layers))  # ConvNeXt's dense layers as well
    expected = brute_force(plain, features, {name: np.ones(mask.shape, bool) for name, mask in relevant.items()})
    for name, mask in relevant.items():
        np.testing.assert_array_equal(mask, expected[name], name)


@pytest.mark.full
@pytest.mark.slow
def test_in_google_nets_branches():
    """A branch's feature depends on its own branch and on all before the block, not on its neighbours."""
    model = jc.load("googlenet", weights="random")
    found = jc.relevant_kernels(model, jc.Features("inception3b.branch2.1.conv", [5]))
    share = {name: float(mask.mean()) for name, mask in found.items()}
    assert {name for name, s in share.items() if s == 0} == {"inception3b.branch1.conv"}
    assert share.pop("inception3b.branch2.1.conv") == pytest.approx(1 / 192)
    assert share.pop("inception3b.branch1.conv") == 0 and set(share.values()) == {1.0}
    assert not any(name.startswith("aux") for name in model.layers)


def test_a_dense_block_compiles_in_proportion_to_its_length():
    def length(layers):
        module = densenet.DenseNet(8, 4, (layers,), num_classes=2)
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
        variables = jax.eval_shape(module.init, jax.random.key(0), image)
        gradient = jax.jit(jax.grad(lambda x, v: module.apply(v, x).sum()))
        return len(gradient.lower(image, variables).compile().as_text().splitlines())

    assert length(18) < 3 * length(6)
