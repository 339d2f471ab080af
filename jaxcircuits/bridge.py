"""A Flax nnx model as a linen module, so that its layers can be seen.

`flax.nnx.bridge.to_linen` makes one linen module of a whole model, inside which nothing can be intercepted. Here every
convolution, dense layer and normalisation of the model is run by its linen counterpart; all else stays as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
from flax import nnx
from jax import Array

from jaxcircuits.errors import InputError
from jaxcircuits.model import Model

COUNTERPARTS: dict[type, type[nn.Module]] = {
    nnx.Conv: nn.Conv,
    nnx.Linear: nn.Dense,
    nnx.BatchNorm: nn.BatchNorm,
    nnx.LayerNorm: nn.LayerNorm,
    nnx.GroupNorm: nn.GroupNorm,
    nnx.InstanceNorm: nn.InstanceNorm,
    nnx.RMSNorm: nn.RMSNorm,
}
OWN = ("kernel", "bias", "scale", "mean", "var")  # variables of these modules
# what linen calls the same and means in its own way
APART = (*OWN, "name", "parent", "promote_dtype", "use_running_average")
OTHERS = "others"  # where variables stand that belong to none of them

Place = tuple[str, str, str]  # collection, module, leaf


def from_nnx(model: nnx.Module, **options: Any) -> Model:
    """A `Model` of an nnx module that takes images (N, H, W, C); put it into evaluation mode first, with `eval()`.

    Layers are named by their paths in the model, joined with dots: `blocks.0.conv`.

    Args:
        model: any nnx module; it is left as it is. Of its layers those that are exactly an `nnx.Conv` or `nnx.Linear`
            are seen.
        options: as for `Model`, such as `name` and `input_size`.

    Raises:
        InputError: no nnx module.
    """
    if not isinstance(model, nnx.Module):
        raise InputError(f"from_nnx takes an nnx module, not a {type(model).__name__}; linen modules go to Model")
    graph, state = nnx.split(model)
    owners = {_dotted(path) for path, module in nnx.iter_modules(model) if type(module) in COUNTERPARTS}
    leaves, tree = jax.tree_util.tree_flatten_with_path(state, is_leaf=lambda node: isinstance(node, nnx.Variable))
    places, variables = [], {}
    for path, variable in leaves:
        place = None  # the state of random numbers stays where it is, and arrays that are no variables
        if isinstance(variable, nnx.Variable) and not isinstance(variable, nnx.RngState):
            place = collection, module, leaf = _place([str(part.key) for part in path], variable, owners)
            variables.setdefault(collection, {}).setdefault(module, {})[leaf] = variable.get_value()
        places.append(place)

    def merged(value: Callable[[Place], Array]) -> nnx.Module:
        found = [
            variable.replace(value(place)) if place else variable
            for place, (_, variable) in zip(places, leaves, strict=True)
        ]
        return nnx.merge(graph, jax.tree.unflatten(tree, found))

    return Model(NnxModule(merged), variables, **{"name": type(model).__name__.lower(), **options})


def _dotted(path: Iterable[Any]) -> str:
    return ".".join(map(str, path))


def _place(path: list[str], variable: nnx.Variable, owners: set[str]) -> Place:
    """Where a variable stands among linen's."""
    kinds = {"params": nnx.Param, "batch_stats": nnx.BatchStat, OTHERS: nnx.Variable}
    collection = next(name for name, kind in kinds.items() if isinstance(variable, kind))
    owner = _dotted(path[:-1])
    return (collection, owner, path[-1]) if owner in owners else (collection, OTHERS, _dotted(path))


class NnxModule(nn.Module):
    """Runs an nnx model with the linen counterparts of its layers.

    Attributes:
        merged: from a function that gives each variable's value by its place to the nnx model.
    """

    merged: Callable[[Callable[[Place], Array]], nnx.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        model = self.merged(lambda place: self.variables[place[0]][place[1]][place[2]])
        for path, module in list(nnx.iter_modules(model)):
            if type(module) in COUNTERPARTS:
                # wherever the model keeps the module, it now calls the layer
                seen = _caller(_counterpart(module, _dotted(path)))
                module.__class__ = type("Seen", (type(module),), {"__call__": seen})
        return model(x)  # pyright: ignore[reportCallIssue]


def _caller(layer: nn.Module) -> Callable[..., Array]:
    """What stands in for an nnx module's call."""
    if not isinstance(layer, nn.BatchNorm):
        return lambda _, x, **options: layer(x, **options)

    def call(own, x, use_running_average=None, **options):
        running = own.use_running_average if use_running_average is None else use_running_average
        return layer(x, use_running_average=running, **options)

    return call


def _counterpart(module: nnx.Module, name: str) -> nn.Module:
    kind = COUNTERPARTS[type(module)]
    shared = {field.name for field in dataclasses.fields(kind)} & vars(module).keys() - set(APART)
    if kind is nn.GroupNorm:
        shared.remove("group_size")  # which follows from num_groups, and linen takes one of them
    options = {option: getattr(module, option) for option in shared}
    if isinstance(module, (nnx.Conv, nnx.Linear)):
        options["features"] = module.out_features
    return kind(**options, name=name)
