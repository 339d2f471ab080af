"""The strongest dense PyTorch that we know: one forward pass for all features, hand-written backward passes of many
features a batch, matrix products for the scores, channels last. Zeros are multiplied like other numbers.

Shapes: N images, F features, P positions, K weights of a kernel, I O input and output channels.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.reference import Scores, summed
from benchmarks.torch_networks import Convolutions

# Gradients of so many features (times images) a backward pass: few stay in the cache, many make ActGrad's products
# large.
TOGETHER = {"snip": 16, "actgrad": 64}


class Forward(NamedTuple):
    """What all features share.

    Attributes:
        inputs: of each convolution (N, I, H, W).
        winners: of the pool before each convolution, or None.
        output: of the target's features (N, F, H, W).
    """

    inputs: list[Tensor]
    winners: list[Tensor | None]
    output: Tensor


@torch.inference_mode()
def run(what: str, network: Convolutions, images: Tensor, channels: tuple[int, ...]) -> Scores:
    """Scores of several features, (F, O, I) a layer."""
    one = _actgrad if what == "actgrad" else _snip
    groups = [images] if what == "snip whole_set" else images.split(1)
    return [t.div_(len(images)) for t in summed(one(network, group, channels) for group in groups)]


def _forward(network: Convolutions, images: Tensor, channels: tuple[int, ...]) -> Forward:
    inputs, winners, x = [], [], images
    for number, pool in enumerate(network.pools):
        won = None
        if pool:  # before the ReLU, which then has less to do; where a maximum is not positive no gradient passes
            x, won = functional.max_pool2d(x, *pool, return_indices=True)
        inputs.append(x.relu() if number else x)
        winners.append(won)
        if number < len(network.pools) - 1:
            x = network.convolutions[number](inputs[-1])
    last, own = network.convolutions[-1], list(channels)
    padding: Any = last.padding
    bias = None if last.bias is None else last.bias[own]
    return Forward(inputs, winners, functional.conv2d(inputs[-1], last.weight[own], bias, last.stride, padding))


def _gradients(
    network: Convolutions, seen: Forward, own: list[int], cotangents: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """From the last layer before the target to the first: its number and the gradient at its output (F, N, O, H, W).

    Args:
        own: the features' channels.
        cotangents: at the features (F, N, H, W).
    """
    count, last = len(seen.inputs[0]), network.convolutions[-1]
    g = _start(last, cotangents, last.weight[own])
    for number in range(len(network.convolutions) - 2, -1, -1):
        live = (seen.inputs[number + 1] > 0).to(g.dtype)
        g = g.unflatten(0, (-1, count)).mul_(live).flatten(0, 1)
        won, pool = seen.winners[number + 1], network.pools[number + 1]
        convolution = network.convolutions[number]
        if won is not None and pool:
            size = (len(g), convolution.out_channels, *_output_size(convolution, seen.inputs[number]))
            g = _unpool(g, won, pool, torch.empty(size, device=g.device, memory_format=torch.channels_last))
        yield number, g.unflatten(0, (-1, count))
        if number:
            g = functional.conv2d(g, _flipped(convolution.weight), padding=_opposite(convolution))


def _start(last: nn.Conv2d, cotangents: Tensor, kernels: Tensor) -> Tensor:
    """The gradient at the target's input (F N, I, H, W): each feature has one kernel (I, h, w), so a small product."""
    around = functional.unfold(cotangents.flatten(0, 1)[:, None], last.kernel_size, padding=_opposite(last))
    weights = kernels.flip(2, 3).flatten(2).mT.repeat_interleave(cotangents.shape[1], 0)  # (F N, K, I)
    height = cotangents.shape[2] + 2 * _opposite(last)[0] - last.kernel_size[0] + 1
    return torch.bmm(around.mT, weights).unflatten(1, (height, -1)).permute(0, 3, 1, 2)


def _flipped(weight: Tensor) -> Tensor:
    """The kernels of the convolution that is another's input gradient, for strides of 1."""
    return weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)


def _opposite(convolution: nn.Conv2d) -> tuple[int, int]:
    """The padding of that convolution."""
    assert convolution.stride == (1, 1), "only the first convolution has strides"
    first, second = (k - 1 - int(p) for k, p in zip(convolution.kernel_size, convolution.padding, strict=True))
    return first, second


def _output_size(convolution: nn.Conv2d, x: Tensor) -> tuple[int, int]:
    parts = zip(x.shape[2:], convolution.padding, convolution.kernel_size, convolution.stride, strict=True)
    first, second = ((size + 2 * int(p) - k) // s + 1 for size, p, k, s in parts)
    return first, second


def _unpool(g: Tensor, won: Tensor, pool: tuple[int, int], like: Tensor) -> Tensor:
    """A max-pool's gradient for many features: g (F N, C, h, w), the winners (N, C, h, w), `like` for its size."""
    every = won.expand(len(g) // len(won), *won.shape).flatten(0, 1)  # of one image no copy
    won = every.contiguous(memory_format=torch.channels_last)
    window, stride = ([n, n] for n in pool)
    return torch.ops.aten.max_pool2d_with_indices_backward(g, like, window, stride, [0, 0], [1, 1], False, won)


def _patches(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """(N, I, K, P)."""
    padding: Any = convolution.padding
    patches = functional.unfold(x, convolution.kernel_size, padding=padding, stride=convolution.stride)
    return patches.unflatten(1, (convolution.in_channels, -1))


def _blocks(channels: tuple[int, ...], size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, len(channels), size))


def _nothing(network: Convolutions, channels: tuple[int, ...], like: Tensor) -> Scores:
    return [like.new_zeros(len(channels), *c.weight.shape[:2]) for c in network.convolutions]


def _snip(network: Convolutions, images: Tensor, channels: tuple[int, ...]) -> Scores:
    """mean over K of |w * gradient|, the gradient summed over the images."""
    seen = _forward(network, images, channels)
    scores = _nothing(network, channels, images)
    sides = []  # patches (N P, K I) and weights (O, K, I) of each layer: a sum over K then runs over rows
    for convolution, x in zip(network.convolutions, seen.inputs, strict=True):
        patches = _patches(convolution, x).permute(0, 3, 2, 1).flatten(2).flatten(0, 1)
        sides.append((patches, convolution.weight.flatten(2).mT.contiguous()))
    for block in _blocks(channels, max(1, TOGETHER["snip"] // len(images))):
        own = list(channels[block])
        cotangents = seen.output[:, block].sign().transpose(0, 1)
        product = cotangents.flatten(1) @ sides[-1][0]
        scores[-1][range(len(channels))[block], own] = _magnitude(product, sides[-1][1][own])
        for number, g in _gradients(network, seen, own, cotangents):
            patches, w = sides[number]
            rows = g.permute(0, 1, 3, 4, 2).flatten(1, 3).mT  # (F, O, N P)
            # on a CPU one feature after another: its gradient stays in the cache until it is reduced
            step = len(rows) if rows.is_cuda else 1
            for f in range(0, len(rows), step):
                place = slice(block.start + f, block.start + f + step)
                scores[number][place] = _magnitude(torch.matmul(rows[f : f + step], patches), w)
    return scores


def _magnitude(gradient: Tensor, w: Tensor) -> Tensor:
    """mean over K of |w * gradient|: (..., K I), (O, K, I) -> (..., I)."""
    return gradient.unflatten(-1, w.shape[-2:]).mul_(w).abs_().mean(-2)


def _actgrad(network: Convolutions, image: Tensor, channels: tuple[int, ...]) -> Scores:
    """mean over P of |kernel's map| |gradient|; the maps are made once for all features."""
    seen = _forward(network, image, channels)
    scores = _nothing(network, channels, image)
    maps: list[Tensor] = []  # |map| / P (I, O, P) of each layer before the target
    for convolution, x in zip(network.convolutions[:-1], seen.inputs, strict=False):
        patches = _patches(convolution, x)[0]
        maps.append(torch.bmm(_by_input(convolution.weight), patches).abs_().div_(patches.shape[-1]))
    last = network.convolutions[-1]
    patches = _patches(last, seen.inputs[-1])[0]
    for block in _blocks(channels, TOGETHER["actgrad"]):
        own = list(channels[block])
        cotangents = seen.output[:, block].sign().transpose(0, 1)
        own_maps = torch.bmm(_by_input(last.weight[own]), patches).abs_()  # (I, F, P)
        product = own_maps.mul_(cotangents.abs().flatten(1)).mean(-1).T
        scores[-1][range(len(channels))[block], own] = product
        for number, g in _gradients(network, seen, own, cotangents):
            rows = g.flatten(3)[:, 0]
            rows = torch.abs(
                rows, out=torch.empty(rows.shape, device=rows.device)
            )  # (F, O, P), no longer channels last
            product = torch.bmm(rows.transpose(0, 1), maps[number].permute(1, 2, 0))  # (O, F, I)
            scores[number][block] = product.transpose(0, 1)
    return scores


def _by_input(weight: Tensor) -> Tensor:
    """(O, I, h, w) -> (I, O, K), in the order in which batched products are quick."""
    return weight.flatten(2).transpose(0, 1).contiguous()


@torch.inference_mode()
def curve(network: Convolutions, images: Tensor, channel: int, masks: list[Scores]) -> Tensor:
    """Pearson r of a feature in each of several circuits, given by their masks (O, I) a layer.

    The target, which is not the first layer, computes one channel.
    """
    every = [*masks, [torch.ones_like(m) for m in masks[0]]]
    shared, rows = _first_layer(network, images, torch.stack([mask[0] for mask in every]))
    found = []
    for mask, row in zip(every, rows, strict=True):
        x = shared[:, row].contiguous(memory_format=torch.channels_last)
        for number, convolution in enumerate(network.convolutions[1:], 1):
            x = x if number == 1 else _stage(network, number, x)
            own = [channel] if number == len(mask) - 1 else slice(None)
            padding: Any = convolution.padding
            weight = convolution.weight[own] * mask[number][own][:, :, None, None]
            bias = None if convolution.bias is None else convolution.bias[own]
            x = functional.conv2d(x, weight, bias, convolution.stride, padding)
        found.append(x.flatten())
    return torch.stack([torch.corrcoef(torch.stack([x, found[-1]]))[0, 1] for x in found[:-1]])


def _first_layer(network: Convolutions, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """What enters the second layer, for the first layer's masks (K, O, I): its maps, and which of them are whose.

    Circuits share most rows of that layer, so each row's map is made once: (N, rows, H, W) and (K, O).
    """
    first = network.convolutions[0]
    channels = torch.arange(masks.shape[1], device=masks.device).expand(masks.shape[:2])
    rows = torch.cat([channels[:, :, None].to(masks.dtype), masks], -1).flatten(0, 1)
    rows, places = torch.unique(rows, dim=0, return_inverse=True)
    own = rows[:, 0].long()
    padding: Any = first.padding
    bias = None if first.bias is None else first.bias[own]
    maps = functional.conv2d(images, first.weight[own] * rows[:, 1:, None, None], bias, first.stride, padding)
    return _stage(network, 1, maps), places.view(masks.shape[:2])


def _stage(network: Convolutions, number: int, x: Tensor) -> Tensor:
    """ReLU and pool before a convolution; the pool first, so that the ReLU has less to do."""
    pool = network.pools[number]
    return (functional.max_pool2d(x, *pool) if pool else x).relu_()
