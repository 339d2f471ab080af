"""The baseline that does what the paper's program does: one feature at a time, everything from scratch."""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.torch_networks import Convolutions
from jaxcircuits.criteria.force import counts
from jaxcircuits.masks import keep_counts

Scores = list[Tensor]  # one (O, I) a layer


def snip(
    network: Convolutions, images: Tensor, channel: int, absolute: str, full: list[Tensor] | None = None
) -> Scores:
    """Backward once an image (or once for all), then |w * gradient|; `full` are the weights before they were masked."""
    batches = images.split(1 if absolute == "per_image" else len(images))

    def one(batch: Tensor) -> Scores:
        network.zero_grad()
        network(batch)[:, channel].abs().sum().backward()
        weights = [convolution.weight for convolution in network.convolutions]
        pairs = zip(full or weights, weights, strict=True)
        return [(w * _gradient(own)).detach().abs().mean((2, 3)) / len(images) for w, own in pairs]

    return summed(one(batch) for batch in batches)


def force(network: Convolutions, images: Tensor, channels: tuple[int, ...], keep: float) -> Scores:
    """SNIP in rounds, each with the weights that are not kept set to zero; the last one's scores (F, O, I)."""
    found = [_force(network, images, channel, keep) for channel in channels]
    return [torch.stack(layer) for layer in zip(*found, strict=True)]


def _force(network: Convolutions, images: Tensor, channel: int, keep: float) -> Scores:
    weights = [convolution.weight.detach().clone() for convolution in network.convolutions]
    scores = snip(network, images, channel, "per_image")
    relevant = sum(w.shape[0] * w.shape[1] for w in weights[:-1]) + weights[-1].shape[1]
    for (kept,) in counts(np.array([relevant]), keep_counts(np.array([relevant]), keep, None)):
        least = torch.cat([s.flatten() for s in scores]).topk(int(kept)).values[-1]
        for convolution, w, score in zip(network.convolutions, weights, scores, strict=True):
            convolution.weight.data = w * (score >= least)[:, :, None, None]
        scores = snip(network, images, channel, "per_image", weights)
    for convolution, w in zip(network.convolutions, weights, strict=True):
        convolution.weight.data = w
    return scores


def actgrad(network: Convolutions, images: Tensor, channel: int) -> Scores:
    """Every kernel's map is kept: a grouped convolution with one output for each pair (i, o), summed afterwards."""

    def one(image: Tensor) -> Scores:
        x, scores = image, [torch.empty(0)] * len(network.convolutions)

        def keep(gradient: Tensor, maps: Tensor, number: int) -> None:
            scores[number] = (maps.detach() * gradient).abs_().mean((0, 3, 4)).T / len(images)

        for number, convolution in enumerate(network.convolutions):
            x = network.stage(number, x)
            maps = _kernel_maps(convolution, x)
            maps.register_hook(functools.partial(keep, maps=maps, number=number))
            total = maps.sum(1)
            # the value of the ordinary convolution, or rounding would switch a ReLU now and then
            x = total + (convolution(x) - total).detach()
        x[:, channel].abs().sum().backward()
        return scores

    return summed(one(image) for image in images.split(1))


def _kernel_maps(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """(1, I, O, H, W)."""
    inputs, outputs = convolution.in_channels, convolution.out_channels
    weight = convolution.weight.transpose(0, 1).reshape(inputs * outputs, 1, *convolution.kernel_size)
    padding: Any = convolution.padding
    maps = nn.functional.conv2d(x, weight, None, convolution.stride, padding, groups=inputs)
    return maps.reshape(1, inputs, outputs, *maps.shape[2:])


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def summed(parts: Iterable[Scores]) -> Scores:
    """The sum of several images' scores."""
    total: Scores | None = None
    for part in parts:
        total = part if total is None else [a.add_(b) for a, b in zip(total, part, strict=True)]
    assert total is not None
    return total


def curve(network: Convolutions, images: Tensor, channel: int, masks: list[Scores]) -> Tensor:
    """Pearson r of a feature in each of several circuits, given by their masks (O, I) a layer."""
    with torch.no_grad():
        full = network(images)[:, channel].flatten()
        weights = [convolution.weight.data for convolution in network.convolutions]
        result = []
        for mask in masks:
            for convolution, w, m in zip(network.convolutions, weights, mask, strict=True):
                convolution.weight.data = w * m[:, :, None, None]
            result.append(torch.corrcoef(torch.stack([network(images)[:, channel].flatten(), full]))[0, 1])
        for convolution, w in zip(network.convolutions, weights, strict=True):
            convolution.weight.data = w
        return torch.stack(result)


def run(what: str, network: Convolutions, images: Tensor, channels: tuple[int, ...]) -> Scores:
    """Scores of several features, (F, O, I) a layer."""
    absolute = "whole_set" if what == "snip whole_set" else "per_image"
    features = [
        actgrad(network, images, channel) if what == "actgrad" else snip(network, images, channel, absolute)
        for channel in channels
    ]
    return [torch.stack(layer) for layer in zip(*features, strict=True)]
