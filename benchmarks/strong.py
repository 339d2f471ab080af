"""The strongest PyTorch that we know: one forward and one batched backward pass for all features, matrix products."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.reference import Scores
from benchmarks.torch_networks import Convolutions


def run(what: str, network: Convolutions, images: Tensor, channels: tuple[int, ...]) -> Scores:
    """Scores of several features, (F, O, I) a layer."""
    if what == "snip whole_set":
        gradients = [_accumulated(parts) for parts in zip(*(_weight_gradients(network, images, channels)), strict=True)]
        weights = [c.weight.detach() for c in network.convolutions]
        return [_weighted(g, w) / len(images) for g, w in zip(gradients, weights, strict=True)]
    one = _actgrad if what == "actgrad" else _snip
    total: Scores | None = None
    for image in images.split(1):
        part = one(network, image, channels)
        total = part if total is None else [a.add_(b) for a, b in zip(total, part, strict=True)]
    assert total is not None
    return [t / len(images) for t in total]


def _shared(
    network: Convolutions, image: Tensor, channels: tuple[int, ...]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Each layer's patches (k I, P), the gradient at its output (F, O, P), and the target's cotangents (F, P)."""
    inputs, outputs, x = [], [], image
    for stage, convolution in zip(network.stages, network.convolutions, strict=True):
        inputs.append(stage(x))
        x = convolution(inputs[-1])
        outputs.append(x)
    last = network.convolutions[-1]
    cotangents = x[0, list(channels)].detach().sign()
    # at the target only the feature's own channel has a cotangent: one small product and a fold
    kernels = last.weight.detach()[list(channels)].flatten(1)
    columns = kernels[:, :, None] * cotangents.flatten(1)[:, None, :]
    size, padding = inputs[-1].shape[2:], cast(Any, last.padding)
    at_input = nn.functional.fold(
        columns,
        size,
        last.kernel_size,
        padding=padding,
        stride=last.stride,
    )[:, None]
    gradients = torch.autograd.grad(inputs[-1], outputs[:-1], at_input, is_grads_batched=True)
    seen = [_patches(c, x.detach()) for c, x in zip(network.convolutions, inputs, strict=True)]
    return seen, [g.flatten(3)[:, 0] for g in gradients], cotangents.flatten(1)


def _patches(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    padding = cast(Any, convolution.padding)
    return nn.functional.unfold(x, convolution.kernel_size, padding=padding, stride=convolution.stride)[0]


def _weighted(gradient: Tensor, weight: Tensor) -> Tensor:
    """mean over the weights of |w * gradient|: (F, O, I k) -> (F, O, I)."""
    return (gradient * weight.flatten(1)).abs_().unflatten(-1, (weight.shape[1], -1)).mean(-1)


@torch.no_grad()
def _own(score: Tensor, channels: tuple[int, ...], outputs: int) -> Tensor:
    """Scores of each feature's own channel (F, I) among zeros (F, O, I)."""
    full = score.new_zeros(len(channels), outputs, score.shape[-1])
    full[range(len(channels)), list(channels)] = score
    return full


def _snip(network: Convolutions, image: Tensor, channels: tuple[int, ...]) -> Scores:
    seen, gradients, cotangents = _shared(network, image, channels)
    weights = [c.weight.detach() for c in network.convolutions]
    scores = []
    for patches, gradient, w in zip(seen[:-1], gradients, weights[:-1], strict=True):
        # one feature after another: its gradient stays in the cache until it is reduced
        scores.append(torch.stack([_weighted((g @ patches.T)[None], w)[0] for g in gradient]))
    own = (cotangents @ seen[-1].T * weights[-1][list(channels)].flatten(1)).abs()
    own = own.unflatten(-1, (weights[-1].shape[1], -1)).mean(-1)
    return [*scores, _own(own, channels, len(weights[-1]))]


def _weight_gradients(network: Convolutions, images: Tensor, channels: tuple[int, ...]):
    """Of each image: each layer's gradients (F, O, I k)."""
    for image in images.split(1):
        seen, gradients, cotangents = _shared(network, image, channels)
        products = [g @ patches.T for g, patches in zip(gradients, seen[:-1], strict=True)]
        own = _own(cotangents @ seen[-1].T, channels, network.convolutions[-1].out_channels)
        yield [*products, own]


def _accumulated(parts: tuple[Tensor, ...]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total.add_(part)
    return total


def _actgrad(network: Convolutions, image: Tensor, channels: tuple[int, ...]) -> Scores:
    seen, gradients, cotangents = _shared(network, image, channels)
    scores = []
    for patches, gradient, c in zip(seen[:-1], gradients, network.convolutions, strict=False):
        maps = _kernel_maps(patches, c.weight.detach())  # (O, I, P), shared by all features
        products = torch.bmm(gradient.abs().transpose(0, 1), maps.abs_().transpose(1, 2))  # (O, F, I)
        scores.append(products.transpose(0, 1) / maps.shape[-1])
    w = network.convolutions[-1].weight.detach()
    maps = _kernel_maps(seen[-1], w[list(channels)]).abs_()
    own = torch.bmm(maps, cotangents.abs()[:, :, None])[:, :, 0] / maps.shape[-1]
    return [*scores, _own(own, channels, len(w))]


def _kernel_maps(patches: Tensor, weight: Tensor) -> Tensor:
    """(I k, P), (O, I, h, w) -> (O, I, P)."""
    by_input = patches.unflatten(0, (weight.shape[1], -1))
    return torch.bmm(weight.flatten(2).transpose(0, 1), by_input).transpose(0, 1)
