"""A network's own operations on fewer channels.

A walk through a network's jaxpr computes it on *parts*: arrays of which only some channels are there. What works
channel by channel does so on those; concatenation, shuffling, slicing and flattening move them; a layer picks those
that it reads. Whatever mixes channels in another way is given its whole operands, zeros where a channel is not there.
A channel that is not there is never wanted (`plan` has seen to that), so that anything may stand in for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax import Array

from jaxcircuits.compact.parts import Known, Part
from jaxcircuits.compact.rules import apply
from jaxcircuits.jaxprs import LOOPS, called


class Walk:
    """One run through a jaxpr.

    Args:
        calls: what to do in place of the functions with these names: {name: (operand, shape of the result) -> result}.
        leaf: the array of one of the jaxpr's variables, asked for when it is used.
    """

    def __init__(self, calls: Mapping[str, Callable[..., Known]], leaf: Callable[[Any], Array]):
        self.calls, self.leaf = calls, leaf

    def run(self, jaxpr, constants: Sequence[Any], given: Sequence[Known]) -> list[Known]:
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *given), strict=True))

        def read(v) -> Known:
            value = v.val if hasattr(v, "val") else known[v]
            return self.leaf(value.path) if isinstance(value, Leaf) else value

        for equation in jaxpr.eqns:
            name = equation.params.get("name", "")
            if name in self.calls:
                results = [self.calls[name](read(equation.invars[-1]), equation.outvars[0].aval.shape)]
            elif equation.primitive.name not in LOOPS and (inner := called(equation)) is not None:
                values = [v.val if hasattr(v, "val") else known[v] for v in equation.invars]  # leaves stay unread
                if _is_relu(inner.jaxpr):  # its gradient at 0 is its own
                    results = [_mapped(jax.nn.relu, read(equation.invars[0]))]
                else:
                    results = self.run(inner.jaxpr, inner.consts, values)
            else:
                results = apply(equation, [read(v) for v in equation.invars])
            known |= dict(zip(equation.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars]


class Leaf(NamedTuple):
    """An argument of a jaxpr that has not been read."""

    path: tuple[str, ...]


def _is_relu(jaxpr) -> bool:
    return len(jaxpr.eqns) == 1 and len(jaxpr.invars) == 1 and jaxpr.eqns[0].params.get("name") == "relu"


def _mapped(function: Callable[[Array], Array], value: Known) -> Known:
    return value._replace(value=function(value.value)) if isinstance(value, Part) else function(value)
