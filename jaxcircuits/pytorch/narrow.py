"""A PyTorch network's own operations on fewer channels: `compact.narrow` for torch.fx.

Its graph is written anew, node by node. What works channel by channel does so on the channels that are there;
concatenation, shuffling and flattening move them; a layer picks those that it reads. Whatever else there is gets its
whole operands, zeros where a channel is not there.
"""

from __future__ import annotations

import copy
import operator
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import fx, nn

from jaxcircuits.compact.plan import Plan
from jaxcircuits.errors import InputError
from jaxcircuits.layers import Layer
from jaxcircuits.pytorch.operations import JOINS, PLACE_FUNCTIONS, PLACES, POOL_FUNCTIONS, POOLS, in_place
from jaxcircuits.pytorch.parts import like


class Part(NamedTuple):
    """Some channels of a value.

    Attributes:
        node: of the new graph.
        axis: of the channels.
        size: how many channels the whole value has.
        index: which of them are there, -1 for one that stands for none: a value cannot be without channels.
    """

    node: fx.Node
    axis: int
    size: int
    index: np.ndarray


NONE = np.array([-1])


class Tracer(fx.Tracer):
    """Sees through torchvision's own modules, but not into a channel shuffle."""

    def __init__(self):
        # whoever has a ShuffleNet has imported it
        self.shuffle = getattr(sys.modules.get("torchvision.models.shufflenetv2"), "channel_shuffle", None)
        super().__init__(autowrap_functions=(self.shuffle,) if self.shuffle else ())


def narrowed(network: nn.Module, plan: Plan, image_shape: tuple[int, int, int]) -> fx.GraphModule:
    """The network with what is left of its layers, up to the feature.

    Args:
        network: in evaluation mode, with its weights; it is left as it is.
        plan: of a model with the same layers.
        image_shape: (C, H, W) of the images.

    Raises:
        InputError: torch.fx cannot trace the network, or it has no such layer.
    """
    from torch.fx.passes.shape_prop import ShapeProp

    tracer = Tracer()
    try:
        graph = tracer.trace(network)
    except Exception as error:  # anything that the network's own code may raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"torch.fx cannot trace {type(network).__name__}: {reason}") from error
    ShapeProp(fx.GraphModule(network, graph)).propagate(torch.zeros(1, *image_shape))
    return _Walk(network, plan, tracer.shuffle).run(graph)


class _Walk:
    def __init__(self, network: nn.Module, plan: Plan, shuffle: Callable | None):
        self.network, self.plan, self.shuffle = network, plan, shuffle
        self.graph = fx.Graph()
        self.root: dict[str, Any] = {}  # modules and tensors by name
        self.known: dict[fx.Node, Any] = {}
        self.calls: Counter[str] = Counter()  # of each module: for one set of channels each
        self.picks = 0

    def run(self, graph: fx.Graph) -> fx.GraphModule:
        self.calls.update(str(node.target) for node in graph.nodes if node.op == "call_module")
        for node in graph.nodes:
            if node.op == "output":
                break
            self.known[node] = self.made(node)
            if in_place(self.network, node):  # what is read from its input later on is its result
                self.known[_given(node)[0]] = self.known[node]
            if node.op == "call_module" and node.target == self.plan.target:
                self.graph.output(self.known[node].node)
                compact = fx.GraphModule(self.root, self.graph, f"Compact{type(self.network).__name__}")
                compact.graph.eliminate_dead_code()
                compact.recompile()
                compact.delete_all_unused_submodules()
                return compact.eval()
        raise InputError(f"{type(self.network).__name__} has no layer {self.plan.target!r}")

    def made(self, node: fx.Node) -> Any:
        """What a node of the old graph is in the new one."""
        if node.op == "call_module":
            return self.module(node)
        if node.op in ("call_function", "call_method"):
            found = self.function(node)
            if found is not None:
                return found
        if node.op == "get_attr":
            self.root[str(node.target)] = operator.attrgetter(str(node.target))(self.network)
        return self.copied(node)

    def copied(self, node: fx.Node) -> fx.Node:
        """The same on whole values."""
        return self.graph.node_copy(node, lambda argument: self.whole(self.known[argument]))

    def module(self, node: fx.Node) -> Any:
        module, name, x = self.network.get_submodule(str(node.target)), str(node.target), self.known[_given(node)[0]]
        if isinstance(module, nn.Conv2d | nn.Linear) and name in self.plan.layers:
            return self.layer(node, module, name, x)
        if isinstance(x, Part) and isinstance(module, nn.BatchNorm2d) and x.axis == 1 and self.calls[name] == 1:
            there = np.maximum(x.index, 0)
            small = nn.BatchNorm2d(len(there), module.eps, module.momentum, module.affine, module.track_running_stats)
            small.load_state_dict({k: v[there] if v.ndim else v for k, v in module.state_dict().items()})
            return x._replace(node=self.call(name, small, x.node))
        copied = copy.deepcopy(module)
        if hasattr(copied, "inplace"):
            setattr(copied, "inplace", False)  # noqa: B010  # values may be shared otherwise than in the whole network
        if isinstance(x, Part) and (isinstance(module, PLACES) or (isinstance(module, POOLS) and x.axis == 1)):
            return x._replace(node=self.call(name, copied, x.node))
        self.root[name] = copied
        return self.copied(node)

    def layer(self, node: fx.Node, module: nn.Conv2d | nn.Linear, name: str, x: Any) -> Part:
        axis, size = (1, module.out_channels) if isinstance(module, nn.Conv2d) else (-1, module.out_features)
        axis %= len(_shape(node))
        left = self.plan.slices.get(name)
        channels = _shape(_given(node)[0])[axis]
        _check(name, channels, size, self.plan.layers[name])
        if left is None:
            small = like(module, torch.zeros(1, 1, *module.weight.shape[2:]), None, 1)
            return Part(self.call(name, small, self.pick(x, axis, channels, NONE)), axis, size, NONE)
        kernel = torch.from_numpy(np.ascontiguousarray(left.kernel.transpose(3, 2, 0, 1)))
        bias = None if left.bias is None else torch.from_numpy(left.bias.copy())
        small = like(module, kernel if isinstance(module, nn.Conv2d) else kernel[:, :, 0, 0], bias, left.groups)
        return Part(self.call(name, small, self.pick(x, axis, channels, left.reads)), axis, size, left.gives)

    def function(self, node: fx.Node) -> Any:
        """What a function or method makes of parts; None if it needs whole values."""
        target: Any = node.target
        options: dict[str, Any] = dict(node.kwargs)
        given = _given(node)
        first = self.known.get(given[0]) if given and isinstance(given[0], fx.Node) else None
        if getattr(target, "__name__", "") == "stochastic_depth":  # which does nothing but in training
            return first
        if target in JOINS:
            return self.joined(node)
        if target is torch.cat and (given[1:] or (options.get("dim", 0),))[0] == 1:
            return self.concatenated(node)
        if target is operator.getitem and isinstance(first, list):
            return first[given[1]]
        if not isinstance(first, Part):
            return None
        rest, four = tuple(given[1:]), len(_shape(given[0])) == 4
        if target in PLACE_FUNCTIONS or (target in POOL_FUNCTIONS and four and first.axis == 1):
            kwargs = {k: v for k, v in options.items() if k != "inplace"}
            return first._replace(node=self.graph.create_node(node.op, target, (first.node, *rest), kwargs))
        if target is self.shuffle and self.shuffle is not None:
            return self.shuffled(first, *rest, **options)
        if target in ("chunk", torch.chunk) and (rest[1:] or (options.get("dim", 0),))[0] == first.axis:
            return self.chunked(first, rest[0] if rest else options["chunks"])
        if target in ("flatten", torch.flatten) and (rest or (options.get("start_dim", 0),))[0] == first.axis == 1:
            behind = int(np.prod(_shape(given[0])[2:]))
            index = np.where(first.index[:, None] < 0, -1, first.index[:, None] * behind + np.arange(behind))
            flat = self.graph.call_function(torch.flatten, (first.node, 1))
            return Part(flat, 1, first.size * behind, index.reshape(-1))
        over = rest[0] if rest and isinstance(rest[0], list | tuple) else ()
        if target in ("mean", torch.mean) and over and four and first.axis == 1 and all(a % 4 > 1 for a in over):
            return first._replace(node=self.graph.create_node(node.op, target, (first.node, *rest), options))
        if target in ("permute", torch.permute):
            order = list(rest[0]) if isinstance(rest[0], list | tuple) else list(rest)
            permuted = self.graph.call_function(torch.permute, (first.node, order))
            return first._replace(node=permuted, axis=order.index(first.axis))
        return None

    def joined(self, node: fx.Node) -> Any:
        """Channels that all operands have; one that is the same for all channels has every one."""
        operands = [self.known[a] if isinstance(a, fx.Node) else a for a in _given(node)]
        parts = [operand for operand in operands if isinstance(operand, Part)]
        if not parts or node.kwargs or any((p.axis, p.size) != (parts[0].axis, parts[0].size) for p in parts):
            return None
        axis, size, index = parts[0].axis, parts[0].size, parts[0].index
        for part in parts[1:]:
            if not np.array_equal(part.index, index):
                index = np.intersect1d(index, part.index)
        index = index[index >= 0] if (index >= 0).any() else NONE
        taken = []
        for operand, old in zip(operands, _given(node), strict=True):
            own = axis - len(_shape(node)) + len(_shape(old)) if isinstance(old, fx.Node) else -1
            alike = own < 0 or _shape(old)[own] == 1
            taken.append(operand if alike else self.pick(operand, own, size, index))
        return Part(self.graph.call_function(JOINS[node.target], tuple(taken)), axis, size, index)

    def concatenated(self, node: fx.Node) -> Any:
        values = [self.known[a] for a in _given(node)[0]]
        if not any(isinstance(value, Part) for value in values):
            return None
        nodes, indices, start = [], [], 0
        for value, old in zip(values, _given(node)[0], strict=True):
            size = _shape(old)[1]
            if not isinstance(value, Part):
                value = Part(value, 1, size, np.arange(size))
            if value.axis != 1:
                return None
            if (value.index >= 0).any():
                nodes.append(value.node)
                indices.append(np.where(value.index < 0, -1, value.index + start))
            start += size
        if not nodes:
            return Part(self.pick(values[0], 1, values[0].size, NONE), 1, start, NONE)
        together = self.graph.call_function(torch.cat, (nodes, 1)) if len(nodes) > 1 else nodes[0]
        return Part(together, 1, start, np.concatenate(indices))

    def shuffled(self, part: Part, groups: int) -> Part:
        """Channels a, b of a (groups, channels of each) at b, a: a new numbering of those that are there."""
        within = part.size // groups
        index = np.where(part.index < 0, -1, part.index % within * groups + part.index // within)
        return part._replace(index=index)

    def chunked(self, part: Part, chunks: int) -> list[Part]:
        length, found = -(-part.size // chunks), []
        for start in range(0, part.size, length):
            end = min(start + length, part.size)
            there = part.index[(part.index >= start) & (part.index < end)]
            there = there if len(there) else NONE
            node = self.pick(part, part.axis, part.size, there)
            found.append(Part(node, part.axis, end - start, np.where(there < 0, -1, there - start)))
        return found

    def call(self, name: str, module: nn.Module, x: Any) -> fx.Node:
        self.root[name] = module
        return self.graph.call_module(name, (x,))

    def whole(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.whole(part) for part in value]
        return self.pick(value, value.axis, value.size, np.arange(value.size)) if isinstance(value, Part) else value

    def pick(self, value: Any, axis: int, size: int, index: np.ndarray) -> fx.Node:
        """The given channels, zeros for those that are not there, anything for -1."""
        if not isinstance(value, Part) or value.axis != axis:
            value = Part(self.whole(value), axis, size, np.arange(size))
        if np.array_equal(index, value.index):
            return value.node
        place = np.full(size + 1, len(value.index))
        there = np.flatnonzero(value.index >= 0)
        place[value.index[there]] = there
        place[-1] = 0
        found, node = place[index], value.node
        if (found == len(value.index)).any():
            one = self.graph.call_function(torch.narrow, (node, axis, 0, 1))
            zeros = self.graph.call_function(torch.zeros_like, (one,))
            node = self.graph.call_function(torch.cat, ([node, zeros], axis))
        if len(found) and np.array_equal(found, np.arange(found[0], found[0] + len(found))):
            return self.graph.call_function(torch.narrow, (node, axis, int(found[0]), len(found)))
        name = f"picks.index{self.picks}"
        self.picks += 1
        self.root[name] = torch.from_numpy(found)
        return self.graph.call_function(torch.index_select, (node, axis, self.graph.get_attr(name)))


def _given(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def _shape(node: Any) -> Sequence[int]:
    return node.meta["tensor_meta"].shape


def _check(name: str, inputs: int, outputs: int, layer: Layer) -> None:
    expected = layer.inputs * layer.groups, layer.outputs
    if (inputs, outputs) != expected:
        raise InputError(f"layer {name!r} of the PyTorch network has {(inputs, outputs)} channels; expected {expected}")
