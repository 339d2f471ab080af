"""The models against torchvision's: the same random weights, every convolution's and dense layer's output."""

import contextlib
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import traverse_util
from flax.errors import InvalidRngError

from jaxcircuits.models import ARCHITECTURES, SEEN
from jaxcircuits.models.common import adaptive_average_pool, flatten
from tests.torchvision_oracle import torchvision
from weights_conversion import to_flax, to_torch

# those that have it, as it is with torchvision's weights
TRANSFORMED = {name: {"transform_input": True} for name in ("googlenet", "inception_v3")}


def random_weights(shapes, rng):
    """A state dict whose activations keep their scale through ReLUs; nothing in it is at its initial value."""
    state = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = np.array(rng.integers(1, 1000))
        elif key.endswith("running_var"):
            state[key] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        elif len(shape) == 1 or key.endswith("layer_scale"):  # biases, running means; norms' weights are around 1
            around = 1 if key.endswith("weight") else 0
            state[key] = (around + 0.2 * rng.standard_normal(shape, np.float32)).astype(np.float32)
        else:
            state[key] = (rng.random(shape, np.float32) - np.float32(0.5)) * np.float32(
                np.sqrt(24 / np.prod(shape[1:]))
            )
    return state


def torchvisions(architecture):
    # GoogLeNet and Inception v3 warn that their own default of init_weights will change
    options = TRANSFORMED[architecture] | {"init_weights": False} if architecture in TRANSFORMED else {}
    return torchvision().models.get_model(architecture, **options)


def lucents():
    torchvision()  # which it imports
    module = pytest.importorskip("lucent.modelzoo.inceptionv1.InceptionV1", reason="torch-lucent is not installed")
    model = module.InceptionV1()
    model.softmax2.forward = lambda logits: logits  # as all others
    return model


def random_oracle(architecture, images, rng):
    """The other library's model with random weights, and BatchNorm statistics near those of the images."""
    # no time spent on initial values, but for RegNet, whose constructor draws some
    with contextlib.nullcontext() if architecture.startswith("regnet") else torch.device("meta"):
        model = lucents() if architecture == "inception_v1" else torchvisions(architecture)
    model.eval()
    state = model.state_dict()  # with the metadata that MNASNet insists on
    drawn = random_weights({key: tuple(value.shape) for key, value in state.items()}, rng)
    state.update({key: torch.from_numpy(value) for key, value in drawn.items()})
    model.load_state_dict(state, assign=True)
    # Activations keep their scale through any number of additions.
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 0.9
        norm.train()
    torch_outputs(model, images)
    return model.eval()


def torch_outputs(model, images):
    """The output of every Conv2d and Linear by name, and the logits."""
    outputs, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            # A copy, because torchvision's ReLUs work in place.
            keep = lambda module, _, y, name=name: outputs.update({name: in_flax_order(module, y.clone())})  # noqa: E731
            handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        logits = model(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    for handle in handles:
        handle.remove()
    return outputs | {"logits": logits.numpy()}


def in_flax_order(module, y):
    return y.numpy().transpose(0, 2, 3, 1) if isinstance(module, torch.nn.Conv2d) else y.numpy()


def flax_outputs(module, variables, images):
    """The output of every Conv and Dense by name, and the logits."""

    # compiling takes the time; the convolutions are compiled already
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(variables, images):
        layers = lambda module, method: isinstance(module, nn.Conv | nn.Dense) and method == "__call__"  # noqa: E731
        return module.apply(variables, images, capture_intermediates=layers, mutable=["intermediates"])

    logits, captured = run(variables, images)
    outputs = traverse_util.flatten_dict(captured["intermediates"])
    return {".".join(path[:-1]): np.asarray(calls[0]) for path, calls in outputs.items()} | {"logits": logits}


def nominal(name):
    return SEEN.get(name, {}).get("input_size", 224)


# One variant of each family, and a size that its architecture allows, for the default run, where compiling takes
# the time; "full" runs all variants at their nominal size and at another.
QUICK = {
    "alexnet": 96,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "googlenet": 64,
    "inception_v1": 224,
    "inception_v3": 96,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "vgg11_bn": 64,
}
OTHER_SIZES = {"inception_v1": 240}  # where it cannot be 32 pixels more than the nominal size
RUNS = [(name, size) for name, size in QUICK.items()] + [
    pytest.param(name, size, marks=(pytest.mark.full, pytest.mark.slow))
    for name in ARCHITECTURES
    for size in (nominal(name), OTHER_SIZES.get(name, nominal(name) + 32))
]


@pytest.mark.parametrize("architecture, size", RUNS)
def test_every_layer_computes_what_torchvision_computes(architecture, size):
    rng = np.random.default_rng(0)
    # Coarse, because of fine noise deep layers see averages alone.
    coarse = rng.standard_normal((2, size // 32 + 1, size // 32 + 1, 3), np.float32)
    images = coarse.repeat(32, 1).repeat(32, 2)[:, :size, :size] + rng.standard_normal((2, size, size, 3), np.float32)
    oracle = random_oracle(architecture, images, rng)
    state = {key: tensor.numpy() for key, tensor in oracle.state_dict().items()}
    rounded = torch_outputs(oracle, images)
    expected = torch_outputs(oracle.double(), images.astype(np.float64))

    module = ARCHITECTURES[architecture](**TRANSFORMED.get(architecture, {}))
    template = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *[nominal(architecture)] * 2, 3)))
    converted = to_flax(state, template)
    outputs = flax_outputs(module, converted.variables, images)
    assert outputs.keys() == expected.keys()
    for name in expected:
        scale = np.abs(expected[name]).max()
        rounding = np.abs(rounded[name] - expected[name]).max()  # PyTorch's own grows in deep networks
        assert 1e-2 < scale < 1e3 and rounding < 3e-4 * scale, name  # or the next line would mean nothing
        np.testing.assert_allclose(outputs[name], expected[name], 0, 1e-5 * scale + 3 * rounding, err_msg=name)

    back = to_torch(converted.variables, extras=converted.extras)
    assert back.keys() == state.keys()
    for key in state:
        assert back[key].dtype == state[key].dtype
        np.testing.assert_array_equal(back[key], state[key], err_msg=key)


@pytest.mark.parametrize("height, width, size", [(7, 7, 7), (8, 8, 7), (7, 7, 6), (12, 12, 6), (13, 9, 6), (1, 3, 7)])
def test_adaptive_average_pool_is_pytorchs(height, width, size):
    x = np.random.default_rng(0).standard_normal((2, height, width, 3), np.float32)
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(x.transpose(0, 3, 1, 2)), size)
    np.testing.assert_allclose(adaptive_average_pool(x, size), expected.numpy().transpose(0, 2, 3, 1), atol=1e-6)


def test_flatten_keeps_pytorchs_order():
    x = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    np.testing.assert_array_equal(flatten(jnp.asarray(x)), torch.from_numpy(x.transpose(0, 3, 1, 2)).flatten(1))


def test_training_mode_asks_for_a_dropout_key_and_returns_new_statistics():
    module, x = ARCHITECTURES["vgg11_bn"](num_classes=3), jnp.ones((2, 32, 32, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)

    def run(variables, **rngs):
        return module.apply(variables, x, train=True, rngs=rngs, mutable=["batch_stats"])

    logits, updates = jax.eval_shape(run, shapes, dropout=jax.random.key(1))
    assert logits.shape == (2, 3)
    assert updates["batch_stats"].keys() == shapes["batch_stats"].keys()
    with pytest.raises(InvalidRngError, match="dropout"):
        jax.eval_shape(run, shapes)
