"""Any linen module: its layers, what enters them, what is added to what leaves them, and what is refused."""

import functools

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcircuits as jc
from jaxcircuits.gradients import scored_layers
from jaxcircuits.taps import describe
from jaxcircuits.variables import ones
from tests.twins import random_variables

SIZE = (9, 8, 3)
images = np.random.default_rng(0).standard_normal((2, *SIZE)).astype(np.float32)


class Inner(nn.Module):
    """A module with `setup`; conv1 is given by keyword and called before conv0, which is made first."""

    def setup(self):
        self.conv0 = nn.Conv(4, (3, 3), padding="SAME", strides=2, kernel_dilation=(2, 1))
        self.conv1 = nn.Conv(4, (1, 2), padding=((0, 0), (1, 0)))
        self.bn = nn.BatchNorm(use_running_average=True)

    def __call__(self, x):
        return nn.relu(self.conv0(nn.relu(x + self.bn(self.conv1(inputs=x)))))


class Odd(nn.Module):
    """Dotted names, nesting, every kind of geometry; `wrap` is a lifted transformation of the nested module."""

    wrap: type | None = None

    @nn.compact
    def __call__(self, x):
        inner = (self.wrap or (lambda module: module))(Inner)
        x = nn.relu(nn.Conv(4, (3, 3), padding=[(2, 1), (0, 2)], kernel_dilation=(1, 2), name="a.0")(x))
        x = inner(name="stage.1")(x)
        x = nn.relu(nn.Conv(8, (2, 2), padding="VALID", feature_group_count=4, name="depthwise")(x))
        x = nn.relu(nn.Conv(6, (3, 3), padding=1, feature_group_count=2, use_bias=False, name="grouped")(x))
        x = nn.relu(nn.Dense(5, name="pixels")(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


NAMES = ["a.0", "stage.1.conv1", "stage.1.conv0", "depthwise", "grouped", "pixels", "head"]


def network(module, size=SIZE, **options):
    variables = random_variables(module, (1, *size), **options)
    return describe(module, variables, size, options), variables


def test_layers_in_call_order_with_their_geometry():
    found, variables = network(Odd())
    assert list(found.layers) == NAMES
    assert found.layers["stage.1.conv1"].path == ("stage.1", "conv1")

    def geometry(layer):
        return layer.window, layer.strides, layer.padding, layer.dilation, layer.groups, layer.inputs, layer.outputs

    one = (1, 1)
    none = ((0, 0), (0, 0))
    assert {name: geometry(layer) for name, layer in found.layers.items()} == {
        "a.0": ((3, 3), one, ((2, 1), (0, 2)), (1, 2), 1, 3, 4),
        "stage.1.conv1": ((1, 2), one, ((0, 0), (1, 0)), one, 1, 4, 4),
        "stage.1.conv0": ((3, 3), (2, 2), ((1, 2), (0, 1)), (2, 1), 1, 4, 4),
        "depthwise": ((2, 2), one, none, one, 4, 1, 8),
        "grouped": ((3, 3), one, ((1, 1), (1, 1)), one, 2, 4, 6),
        "pixels": (one, one, none, one, 1, 6, 5),
        "head": (one, one, none, one, 1, 5, 3),
    }
    shapes = {name: (layer.input_shape, layer.output_shape) for name, layer in found.layers.items()}
    assert shapes["stage.1.conv0"] == ((10, 6, 4), (5, 3, 4))
    assert shapes["head"] == ((5,), (3,))
    assert (found.layers["head"].positions, found.layers["head"].input_maps) == ((1, 1), (1, 1, 5))
    assert found.layers["grouped"].kernels == 24
    for name, layer in found.layers.items():
        kernel = variables["params"]
        for part in layer.path:
            kernel = kernel[part]
        assert layer.weight(variables).shape == (np.prod(layer.window), layer.inputs, layer.outputs), name
        np.testing.assert_array_equal(layer.bias(variables), kernel.get("bias", np.zeros(layer.outputs)))


def outputs_of(module, variables, x):
    """What every layer gives, by Flax's own means."""
    layers = lambda module, method: isinstance(module, nn.Conv | nn.Dense) and method == "__call__"  # noqa: E731
    _, state = module.apply(variables, x, capture_intermediates=layers, mutable=["intermediates"])
    flat = jax.tree_util.tree_flatten_with_path(state["intermediates"])[0]
    return {".".join(key.key for key in path[:-2]): y for path, y in flat}


def apply_layer(layer, variables, x, kernel=None):
    """A layer alone, by Flax: x (N, H, W, C) -> (N, H, W, O)."""
    kernel = layer.weight(variables) if kernel is None else kernel
    module = nn.Conv(
        layer.outputs,
        layer.window,
        strides=layer.strides,
        padding=layer.padding,
        kernel_dilation=layer.dilation,
        feature_group_count=layer.groups,
    )
    kernel = kernel.reshape(*layer.window, layer.inputs, layer.outputs)
    return module.apply({"params": {"kernel": kernel, "bias": layer.bias(variables)}}, x)


@pytest.mark.parametrize("wrap", [None, nn.remat, nn.jit], ids=["plain", "remat", "jit"])
def test_taps_and_probes(wrap):
    """What is tapped gives the layer's output, and with the gradient of its probe that of its kernel."""
    found, variables = network(Odd(wrap))
    expected = outputs_of(Odd(), variables, images)
    by_flax = jax.grad(lambda params: jnp.sin(Odd().apply({**variables, "params": params}, images)).sum())
    kernel_gradients = {"params": jax.jit(by_flax)(variables["params"])}

    def loss(probes):
        x = found.run(variables, images, probes)["head"]
        return jnp.sin(apply_layer(found.layers["head"], variables, x)).sum()

    probes = found.probes(tuple(NAMES[:-1]), 2)
    gradients = jax.jit(jax.grad(loss))(probes)
    taps = found.run(variables, images)
    assert list(taps) == NAMES
    for name, gradient in gradients.items():
        layer = found.layers[name]
        again = functools.partial(apply_layer, layer, variables, taps[name])
        y, pullback = jax.vjp(again, layer.weight(variables))
        np.testing.assert_allclose(y, expected[name], atol=1e-5)
        np.testing.assert_allclose(pullback(gradient)[0], layer.weight(kernel_gradients), atol=1e-5)

    stacked = jax.jit(jax.vmap(jax.grad(loss)))({name: jnp.stack([p, p]) for name, p in probes.items()})
    for name, gradient in gradients.items():
        np.testing.assert_allclose(stacked[name][1], gradient, atol=1e-6)


@pytest.mark.parametrize("first", [False, True], ids=["plain, pinned", "pinned, plain"])
def test_jit_inside_does_not_mix_up_pinned_and_plain_runs(first):
    class Fresh(nn.Module):  # nn.jit remembers traces by class
        @nn.compact
        def __call__(self, x):
            return nn.Conv(2, (1, 1), name="last")(nn.relu(nn.LayerNorm()(nn.Conv(3, (1, 1), name="first")(x))))

    module = nn.jit(Fresh)()
    found, variables = network(module)
    expected = outputs_of(Fresh(), variables, images)["first"]
    normalised = (expected - expected.mean(-1, keepdims=True)) / np.sqrt(expected.var(-1, keepdims=True) + 1e-6)
    norm = variables["params"]["LayerNorm_0"]
    plain = nn.relu(normalised * norm["scale"] + norm["bias"])
    for pinned in (first, not first, first):
        inputs = found.run(variables, images, pinned=pinned)["last"]
        np.testing.assert_allclose(inputs, expected > 0 if pinned else plain, atol=1e-4)


def test_pinned_gradients_pass_untouched():
    """Every path counts: of the image all ones with kernels of mean 1 the gradient of the sum is that of the sums."""
    found, variables = network(Odd())
    positive = ones(found, variables, {})
    probes = found.probes(("pixels",), 2)
    last = lambda probes: found.run(positive, jnp.ones_like(images), probes, pinned=True)["head"].sum()  # noqa: E731
    gradient = jax.jit(jax.grad(last))(probes)["pixels"]
    np.testing.assert_allclose(gradient, 1 / np.prod(gradient.shape[1:3]), rtol=1e-6)


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
        conv = nn.Conv(3, (3, 3), padding=1, name="shared")
        return nn.Conv(2, (1, 1), name="last")(conv(nn.relu(conv(x))[:, ::2]))


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Conv(3, (3, 3), padding=1, name="conv")(x)), None


class Looped(nn.Module):
    @nn.compact
    def __call__(self, x):
        x, _ = nn.scan(Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)(name="loop")(x, None)
        return nn.Conv(2, (1, 1), name="last")(x)


class Tied(nn.Module):
    """One set of weights for both steps."""

    @nn.compact
    def __call__(self, x):
        step = nn.scan(Step, variable_broadcast="params", split_rngs={"params": False}, length=2)
        return nn.Conv(2, (1, 1), name="last")(step(name="loop")(x, None)[0])


class Mapped(nn.Module):
    @nn.compact
    def __call__(self, x):
        heads = nn.vmap(nn.Conv, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=2)
        return nn.Conv(2, (1, 1), name="last")(heads(3, (3, 3), padding=1, name="heads")(x).sum(0))


class Wrapped(nn.Module):
    """One convolution with options, then one without."""

    options: tuple

    @nn.compact
    def __call__(self, x):
        options = {"kernel_size": (3, 3), "padding": 1} | dict(self.options)
        return nn.Conv(2, (1, 1), name="last")(nn.relu(nn.Conv(3, **options, name="odd")(x)))


class Folded(nn.Module):
    """Positions in the batch, as in patch-wise networks."""

    @nn.compact
    def __call__(self, x):
        y = nn.Conv(3, (3, 3), padding=1, name="folded")(x.reshape(-1, x.shape[1] // 3, *x.shape[2:]))
        return nn.Conv(2, (1, 1), name="last")(nn.relu(y.reshape(*x.shape[:3], 3)))


class Rows(nn.Module):
    """The same of a dense layer."""

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(3, name="rows")(x.reshape(-1, x.shape[-1]))
        return nn.Dense(2, name="last")(nn.relu(y.reshape(*x.shape[:3], 3)))


class Standardised(nn.Conv):
    """Its kernels have mean 0, as in BiT."""

    def param(self, name, *args, **kwargs):
        kernel = super().param(name, *args, **kwargs)
        return kernel - kernel.mean((0, 1, 2)) if name == "kernel" else kernel


class WithStandardised(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Conv(2, (1, 1), name="last")(nn.relu(Standardised(3, (3, 3), padding=1, name="own")(x)))


class WithWeightNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Conv(2, (1, 1), name="last")(nn.relu(nn.WeightNorm(nn.Conv(3, (3, 3), padding=1, name="normal"))(x)))


class Otherwise(nn.Module):
    """A layer whose kernel is another one than it stores, or whose product is one of its own."""

    how: str

    @nn.compact
    def __call__(self, x):
        if self.how == "map_variables":
            mapped = nn.map_variables(nn.Conv, "params", _centred, init=self.is_initializing(), mutable=True)
            y = mapped(3, (3, 3), padding=1, name="odd")(x)
        elif self.how == "spectral":
            y = nn.SpectralNorm(nn.Conv(3, (3, 3), padding=1, name="odd"))(x, update_stats=False)
        elif self.how == "product":
            y = nn.Conv(3, (3, 3), padding=1, conv_general_dilated=_own_product, name="odd")(x)
        else:
            y = x + nn.Conv(3, (1, 1), name="odd")(jnp.ones((1, *x.shape[1:3], 2)))
        return nn.Conv(2, (1, 1), name="last")(nn.relu(y))


def _centred(variables):
    return jax.tree.map(lambda w: w - w.mean(), variables)


def _own_product(x, kernel, *arguments, **options):
    return jax.lax.conv_general_dilated(x, kernel - kernel.mean((0, 1, 2)), *arguments, **options)


REFUSED = [
    (WithWeightNorm(), "layer 'normal' stands inside nn.scan, nn.vmap, nn.map_variables, nn.WeightNorm"),
    (Otherwise("map_variables"), "layer 'odd' stands inside nn.scan, nn.vmap, nn.map_variables"),
    (Otherwise("spectral"), "layer 'odd' stands inside nn.scan, nn.vmap, nn.map_variables, .* nn.SpectralNorm"),
    (Otherwise("product"), r"layer 'odd' has a product of its own \(conv_general_dilated\)"),
    (Otherwise("alone"), "layer 'odd' sees one input for all images; expected one for each"),
    (WithStandardised(), "layer 'own' is a Standardised, whose own param may use its kernel in another way"),
    (Twice(), "layer 'shared' is called 2 times"),
    (Looped(), "layer 'loop.conv' stands inside nn.scan, nn.vmap"),
    (Tied(), "layer 'loop.conv' stands inside nn.scan, nn.vmap"),
    (Mapped(), "layer 'heads' stands inside nn.scan, nn.vmap"),
    (Folded(), "layer 'folded' sees 3 inputs for one image"),
    (Rows(), "layer 'rows' sees 72 inputs for one image"),
    (Wrapped((("kernel_size", (3,)),)), "layer 'odd' is a 1-D convolution; expected a 2-D one"),
    (Wrapped((("padding", "CIRCULAR"),)), "layer 'odd' pads with 'CIRCULAR'; expected zeros"),
    (Wrapped((("padding", "REFLECT"),)), "layer 'odd' pads with 'REFLECT'; expected zeros"),
    (Wrapped((("padding", ((1, -1), (1, 1))),)), r"layer 'odd' pads with \(\(1, -1\), \(1, 1\)\); expected zeros"),
    (Wrapped((("mask", jnp.ones((3, 3, 3, 3))),)), "layer 'odd' carries a mask of its own"),
    (Wrapped((("input_dilation", (2, 2)),)), "layer 'odd' dilates its input"),
]


@pytest.mark.parametrize("module, message", REFUSED, ids=[message for _, message in REFUSED])
def test_refused_by_name_where_they_are_scored(module, message):
    found, variables = network(module)
    name = message.split("'")[1]
    for target, layers in [("last", None), ("last", (name,)), (name, None)]:
        with pytest.raises(jc.InputError, match=message):
            scored_layers(found, target, layers)
    assert scored_layers(found, "last", ("last",)) == ("last",)
    inputs = found.run(variables, images)["last"]  # a layer that is left out does no harm
    y = apply_layer(found.layers["last"], variables, inputs)
    np.testing.assert_allclose(y, module.apply(variables, images), atol=1e-5)


class Before(nn.Module):
    rest: nn.Module

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3), padding=1, name="first")(x))
        return self.rest(nn.relu(nn.Conv(3, (3, 3), padding=1, name="target")(x)))


@pytest.mark.parametrize("rest", [Twice(), Looped()], ids=lambda module: type(module).__name__)
def test_refused_after_the_target_or_left_out_they_do_no_harm(rest):
    module = Before(rest)
    model = jc.Model(module, random_variables(module, (1, *SIZE)), input_size=9)
    assert list(model.layers)[0 :: len(model.layers) - 1] == ["first", "rest.last"]
    for target, layers in [("target", None), ("rest.last", ["target", "first"])]:
        features = jc.Features(target, [0, 1])
        scores = jc.score(model, images, features, layers=layers, batch=2)
        assert scores.layers == ("first", "target")
        assert all(np.asarray(values).any() for values in scores.values.values())


def test_a_module_that_does_not_run():
    variables = random_variables(Odd(), (1, *SIZE))
    with pytest.raises(jc.InputError, match=r"Odd does not run on an image of shape \(9, 8, 4\) with these variables"):
        describe(Odd(), variables, (9, 8, 4), {})
    with pytest.raises(jc.InputError, match="Odd does not run on an image"):
        describe(Odd(), {"params": {}}, SIZE, {})


@pytest.mark.parametrize("layer", [nn.BatchNorm(use_running_average=False), nn.Dropout(0.5, deterministic=False)])
def test_training_mode_is_named(layer):
    module = nn.Sequential([layer, nn.Conv(2, (3, 3))])
    with pytest.raises(jc.InputError, match="may be in training mode: for linen see Model's apply_options"):
        describe(module, random_variables(module, (1, *SIZE)), SIZE, {})


class Defaults(nn.Conv):
    """Only other defaults."""

    padding: int = 1  # pyright: ignore[reportIncompatibleVariableOverride]


def test_a_subclass_with_other_defaults_is_a_convolution():
    module = nn.Sequential([Defaults(3, (3, 3)), nn.relu, nn.Conv(2, (1, 1))])
    found, _ = network(module)
    assert not found.layers["layers_0"].trouble and found.layers["layers_0"].padding == ((1, 1), (1, 1))


def test_images_too_small_for_a_layer():
    module = nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, nn.Conv(4, (5, 5), padding="VALID")])
    model = jc.Model(module, module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))), input_size=8)
    images = np.ones((2, 4, 6, 3), np.float32)
    message = r"layer 'layers_2' has a map without positions for images of this size; expected larger ones"
    for verb in (jc.score, lambda *given: list(jc.extract(*given))):
        with pytest.raises(jc.InputError, match=message):
            verb(model, images, jc.Features("layers_2", [0]))
    assert np.asarray(jc.score(model, images, jc.Features("layers_0", [0])).values["layers_0"]).any()


@pytest.mark.parametrize("given", ["bfloat16", "frozen"])
def test_variables_of_any_form(small, given):
    """Half precision and frozen dictionaries are what others save; all criteria and measures take them."""
    variables = small.model.variables
    as_given = {"frozen": flax.core.freeze}.get(given, lambda tree: jax.tree.map(lambda a: a.astype(given), tree))
    variables = as_given(variables)
    model = jc.Model(small.model.module, variables, apply_options=small.model.apply_options, input_size=13)
    expected = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), flax.core.unfreeze(variables))
    plain = jc.Model(small.model.module, expected, apply_options=small.model.apply_options, input_size=13)
    features = jc.Features("features.3", [1])
    for criterion in ("snip", "force"):
        (found,), (circuit,) = (
            list(jc.extract(m, small.images, features, criterion=criterion, keep=0.3)) for m in (model, plain)
        )
        assert found.manifest["correlation"] == circuit.manifest["correlation"]
        for name, mask in circuit.masks.items():
            np.testing.assert_array_equal(found.masks[name], mask)


def test_half_precision_is_refused_by_name():
    module = nn.Sequential([nn.Conv(4, (3, 3), dtype=jnp.bfloat16), nn.relu, nn.Conv(2, (3, 3))])
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    model = jc.Model(module, variables, input_size=8)
    with pytest.raises(jc.InputError, match=r"layer 'layers_0' computes in bfloat16; expected float32"):
        jc.score(model, np.ones((1, 8, 8, 3), np.float32), jc.Features("layers_2", [0]))


def test_variables_that_are_no_dictionaries(small):
    """What `module.init` has sown is there as tuples."""
    given = {**small.model.variables, "intermediates": {"layer1": {"seen": (np.zeros(3),)}}}
    found = jc.Model(small.model.module, given, apply_options={"train": False}, input_size=13)
    assert list(found.layers) == list(small.model.layers) and not any(la.trouble for la in found.layers.values())
