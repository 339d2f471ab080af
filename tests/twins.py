"""Slow, plain twins of every formula, in NumPy and PyTorch, and one small network written in Flax and in PyTorch."""

from collections import OrderedDict

import flax.linen as nn
import jax
import numpy as np
import torch

from jaxcircuits.pooling import max_pool


class Block(nn.Module):
    """A residual block with a grouped convolution and BatchNorm."""

    @nn.compact
    def __call__(self, x, train):
        y = nn.Conv(8, (3, 3), padding=1, feature_group_count=2, use_bias=False, name="conv1")(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not train, name="bn1")(y))
        y = nn.Conv(8, (3, 1), padding=(1, 0), name="conv2")(y)
        return nn.relu(x + nn.BatchNorm(use_running_average=not train, name="bn2")(y))


class Small(nn.Module):
    """Strides, pooling, groups, BatchNorm, a skip, dilation, dense layers; dotted names and nested modules."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(nn.Conv(8, (5, 3), strides=(2, 1), padding=(2, 1), name="features.0")(x))
        x = max_pool(x, 3, 2)
        x = Block(name="layer1")(x, train)
        x = nn.relu(nn.Conv(6, (3, 3), kernel_dilation=2, padding=2, name="features.3")(x))
        x = nn.relu(nn.Dense(7, name="fc1")(x.mean((1, 2))))
        return nn.Dense(4, name="fc2")(x)


class TorchBlock(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(8, eps=1e-5)
        self.conv2 = torch.nn.Conv2d(8, 8, (3, 1), padding=(1, 0))
        self.bn2 = torch.nn.BatchNorm2d(8, eps=1e-5)

    def forward(self, x):
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class TorchSmall(torch.nn.Module):
    """`Small` in PyTorch."""

    def __init__(self):
        super().__init__()
        first = torch.nn.Conv2d(3, 8, (5, 3), stride=(2, 1), padding=(2, 1))
        last = torch.nn.Conv2d(8, 6, 3, dilation=2, padding=2)
        self.features = torch.nn.Sequential(OrderedDict({"0": first, "3": last}))
        self.layer1 = TorchBlock()
        self.fc1, self.fc2 = torch.nn.Linear(6, 7), torch.nn.Linear(7, 4)

    def forward(self, x):
        x = torch.nn.functional.max_pool2d(torch.relu(self.features[0](x)), 3, 2)
        x = torch.relu(self.features[1](self.layer1(x)))
        return self.fc2(torch.relu(self.fc1(x.mean((2, 3)))))


def random_variables(module, image_shape, seed=0, **options):
    """Variables in which nothing is at its initial value: all random, variances positive, activations of order one."""
    shapes = jax.eval_shape(lambda key, x: module.init(key, x, **options), jax.random.key(0), np.zeros(image_shape))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        values = rng.standard_normal(leaf.shape).astype(np.float32)
        if name == "kernel":
            return values * np.sqrt(2 / np.prod(leaf.shape[:-1])).astype(np.float32)
        return np.abs(values) + 0.5 if name in ("var", "scale") else 0.2 * values

    return jax.tree_util.tree_map_with_path(draw, shapes)


# Scores, from one backward pass a feature and image; masks and scores are {layer: (O, I)} here, as in PyTorch.


def objective_of(maps, objective, place):
    """The number that is differentiated: maps (H, W) of one image; place None, (h, w), "middle" or "argmax"."""
    height, width = maps.shape
    if place == "middle":
        place = height // 2, width // 2
    if place == "argmax":
        place = divmod(int(maps.argmax()), width)
    if place is not None:
        maps = maps[place[0], place[1]]
    return {"abs": maps.abs().sum(), "sum": maps.sum(), "max": maps.max()}[objective]


def one_image(network, image, target, direction):
    """Every layer's input and output, and the feature's map, for one image (H, W, C)."""
    seen, handles = {}, []
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            hook = lambda _, x, y, name=name: seen.update({name: (x[0], y)})  # noqa: E731
            handles.append(module.register_forward_hook(hook))
    network(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])
    for handle in handles:
        handle.remove()
    output = seen[target][1][0]
    output = output.reshape(len(output), *(output.shape[1:] or (1, 1)))
    return seen, torch.einsum("ohw,o->hw", output, torch.from_numpy(direction))


def snip(
    network, images, target, direction, layers, *, absolute="per_image", objective="abs", places=None, weights_too=False
):
    """SNIP of one feature: {layer: (O, I)}, by autograd with respect to the weights; places are those of the images.

    With `weights_too`, of every weight: {layer: (O, I, K)}.
    """
    weights = [network.get_submodule(name).weight for name in layers]
    gradients = []
    for n, image in enumerate(images):
        _, maps = one_image(network, image, target, direction)
        place = tuple(places[n]) if isinstance(places, np.ndarray) else places
        gradients.append(torch.autograd.grad(objective_of(maps, objective, place), weights))
    scores = {}
    for k, (name, w) in enumerate(zip(layers, weights, strict=True)):
        per_image = torch.stack([w * g[k] for g in gradients])
        per_image = per_image.reshape(len(images), *w.shape[:2], -1)
        each = {
            "per_image": per_image.abs().mean(0),
            "whole_set": per_image.mean(0).abs(),
            "none": per_image.mean(0),
        }[absolute]
        scores[name] = (each if weights_too else each.mean(-1)).detach().numpy()
    return scores


def contribution(module, x, o, i):
    """What kernel (i, o) adds to output o, before the sum over i: (H, W), or a number for a dense layer."""
    w = module.weight[o, i]
    if isinstance(module, torch.nn.Linear):
        return x[0, i] * w
    channel = o // (module.out_channels // module.groups) * (module.in_channels // module.groups) + i
    options = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
    return torch.nn.functional.conv2d(x[:, channel : channel + 1], w[None, None], **options)[0, 0]


def actgrad(network, images, target, direction, layers, *, absolute="per_image", objective="abs", places=None):
    """ActGrad of one feature: {layer: (O, I)}, kernel by kernel."""
    part = torch.abs if absolute == "per_image" else lambda a: a
    scores = {name: torch.zeros(network.get_submodule(name).weight.shape[:2]) for name in layers}
    for n, image in enumerate(images):
        seen, maps = one_image(network, image, target, direction)
        place = tuple(places[n]) if isinstance(places, np.ndarray) else places
        outputs = [seen[name][1] for name in layers]
        gradients = torch.autograd.grad(objective_of(maps, objective, place), outputs)
        with torch.no_grad():
            for name, g in zip(layers, gradients, strict=True):
                module, x = network.get_submodule(name), seen[name][0]
                for o, i in np.ndindex(*module.weight.shape[:2]):
                    scores[name][o, i] += part(contribution(module, x, o, i) * g[0, o]).mean() / len(images)
    return {name: score.numpy() for name, score in scores.items()}


def actgrad_of_filters(network, images, target, direction, layers, *, absolute="per_image"):
    """ActGrad of one feature, with each layer's whole output, bias included: {layer: (O,)}."""
    part = torch.abs if absolute == "per_image" else lambda a: a
    scores = {name: 0 for name in layers}
    for image in images:
        seen, maps = one_image(network, image, target, direction)
        outputs = [seen[name][1] for name in layers]
        gradients = torch.autograd.grad(maps.abs().sum(), outputs)
        for name, y, g in zip(layers, outputs, gradients, strict=True):
            y, g = y[0].detach(), g[0]
            scores[name] += part(y * g).reshape(len(y), -1).mean(1).numpy() / len(images)
    return scores


def top_kernels(values, relevant, layers, count):
    """Masks of one feature by a stable sort: values and relevant {layer: (I, O)}, ties in the order layer, o, i."""
    scores = np.concatenate([np.asarray(values[name]).T.ravel() for name in layers]).astype(np.float64) + 0.0
    possible = np.concatenate([np.asarray(relevant[name]).T.ravel() for name in layers])
    order = np.argsort(np.where(possible, -scores, np.inf), kind="stable")
    kept = np.zeros(len(scores), bool)
    kept[order[:count]] = True
    masks = {}
    for name in layers:
        inputs, outputs = values[name].shape
        masks[name], kept = kept[: inputs * outputs].reshape(outputs, inputs).T, kept[inputs * outputs :]
    return masks


def mean_offsets(network, images, masks):
    """What mean ablation adds to each layer's outputs, {layer: (O,)}, kernel by kernel, for masks {layer: (O, I)}."""
    sums = {name: np.zeros(len(mask)) for name, mask in masks.items()}
    with torch.no_grad():
        for image in images:
            seen, _ = one_image(network, image, next(iter(masks)), np.zeros(len(masks[next(iter(masks))]), np.float32))
            for name, mask in masks.items():
                for o, i in np.argwhere(~np.asarray(mask)):
                    added = contribution(network.get_submodule(name), seen[name][0], o, i)
                    sums[name][o] += float(added.mean()) / len(images)
    return sums


def with_kernels(network, masks, offsets=None):
    """A function of images (N, H, W, C) that gives every layer's output (N, O, H, W) with masked kernels (O, I) or
    weights (of their own shape), and offsets (O,) added to outputs."""

    def added(name, y):
        if name not in (offsets or {}):
            return y
        return y + torch.tensor(offsets[name], dtype=y.dtype).reshape(-1, *[1] * (y.ndim - 2))

    def run(images):
        weights = {}
        for name, mask in masks.items():
            w = network.get_submodule(name).weight
            weights[f"{name}.weight"] = w * torch.tensor(mask).reshape(*mask.shape, *[1] * (w.ndim - mask.ndim))
        seen, handles = {}, []
        for name, module in network.named_modules():

            def hook(_, x, y, name=name):
                seen[name] = added(name, y)
                return seen[name]

            handles.append(module.register_forward_hook(hook))
        with torch.no_grad():
            torch.func.functional_call(network, weights, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        for handle in handles:
            handle.remove()
        return seen

    return run
