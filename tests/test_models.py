"""The models against torchvision's: the same random weights, every convolution's and dense layer's output."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.errors import InvalidRngError

from jaxcircuits.models import ARCHITECTURES
from jaxcircuits.models.common import adaptive_average_pool, flatten
from tests.torchvision_oracle import torchvision
from weights_conversion import to_flax


def random_weights(shapes, rng):
    """A state dict whose activations keep their scale through ReLUs; nothing in it is at its initial value."""
    state = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = np.array(rng.integers(1, 1000))
        elif key.endswith("running_var"):
            state[key] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        elif len(shape) == 1:  # biases, running means; BatchNorm's weights are around 1
            around = 1 if key.replace("weight", "running_mean") in shapes and key.endswith("weight") else 0
            state[key] = (around + 0.2 * rng.standard_normal(shape, np.float32)).astype(np.float32)
        else:
            state[key] = (rng.random(shape, np.float32) - np.float32(0.5)) * np.float32(
                np.sqrt(24 / np.prod(shape[1:]))
            )
    return state


def torch_outputs(model, images):
    """The output of every Conv2d and Linear by name."""
    outputs, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            # A copy, because torchvision's ReLUs work in place.
            keep = lambda _, __, y, name=name: outputs.update({name: y.clone().numpy()})  # noqa: E731
            handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        model(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    for handle in handles:
        handle.remove()
    return {name: y.transpose(0, 2, 3, 1) if y.ndim == 4 else y for name, y in outputs.items()}


def flax_outputs(module, variables, images):
    """The logits, and the output of every Conv and Dense by name."""

    @jax.jit
    def run(variables, images):
        layers = lambda module, method: isinstance(module, nn.Conv | nn.Dense) and method == "__call__"  # noqa: E731
        return module.apply(variables, images, capture_intermediates=layers, mutable=["intermediates"])

    logits, captured = run(variables, images)
    return logits, {name: np.asarray(calls["__call__"][0]) for name, calls in captured["intermediates"].items()}


LARGE = ("vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn")


@pytest.mark.parametrize(
    "architecture", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in ARCHITECTURES]
)
def test_every_layer_computes_what_torchvision_computes(architecture):
    rng = np.random.default_rng(0)
    with torch.device("meta"):  # no time spent on initial values
        expected_model = torchvision().models.get_model(architecture).eval()
    state = random_weights({key: tuple(value.shape) for key, value in expected_model.state_dict().items()}, rng)
    expected_model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()}, assign=True)

    module = ARCHITECTURES[architecture]()
    template = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    variables = to_flax(state, template).variables

    for size in (224, 256):
        images = rng.standard_normal((1, size, size, 3), np.float32)
        expected = torch_outputs(expected_model, images)
        logits, outputs = flax_outputs(module, variables, images)
        assert outputs.keys() == expected.keys()
        for name in expected:
            scale = np.abs(expected[name]).max()
            assert 1e-2 < scale < 1e2, name  # neither vanished nor exploded: the next line means something
            np.testing.assert_allclose(outputs[name], expected[name], rtol=0, atol=1e-5 * scale, err_msg=name)
        np.testing.assert_array_equal(logits, outputs["classifier.6"])


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
