"""What walks through a network's jaxpr share: which of its equations are calls, which go element by element, and which
results are operands as they are."""

from __future__ import annotations

from typing import Any

import jax
from jax.extend.core import ClosedJaxpr

LOOPS = ("scan", "while", "cond")
# operands and results of one shape, and yet not element by element
ACROSS = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort", "triangular_solve", "fft")


def called(equation: Any) -> ClosedJaxpr | None:
    """The jaxpr that an equation runs on its own operands, as a call does, and a loop in each turn."""
    if equation.primitive.name.startswith("reduce"):  # what it has is run on two elements
        return None
    found = next((v for k, v in equation.params.items() if k in ("jaxpr", "call_jaxpr")), None)
    if found is None:
        return None
    closed = found if hasattr(found, "consts") else ClosedJaxpr(found, ())
    return closed if len(closed.jaxpr.invars) == len(equation.invars) else None


def origin(jaxpr: Any, variable: Any) -> int | None:
    """Which of the jaxpr's operands a variable is, as it is; None if it is made of any."""
    places = {id(v): k for k, v in enumerate(jaxpr.invars)}
    while id(variable) not in places:
        made = ((e, e.outvars.index(variable)) for e in jaxpr.eqns if any(v is variable for v in e.outvars))
        equation, number = next(made, (None, 0))
        inner = None if equation is None or equation.primitive.name in LOOPS else called(equation)
        if equation is None or inner is None:
            return None
        place = origin(inner.jaxpr, inner.jaxpr.outvars[number])
        if place is None:
            return None
        variable = equation.invars[place]
    return places[id(variable)]


def stored_kernels(jaxpr: Any, sown: Any, variables: Any) -> set[tuple[str, ...]]:
    """The paths of layers whose kernels are those among the variables, which are the jaxpr's first operands, of the
    kernels that it gives, sown by their modules: a transform such as `nn.map_variables` makes others."""

    def paths(tree: Any) -> list[tuple[str, ...]]:
        found = jax.tree_util.tree_flatten_with_path(tree)[0]
        return [tuple(part.key for part in path if hasattr(part, "key")) for path, _ in found]

    given, found = paths(variables), set()
    for (*layer, _), v in zip(paths(sown), jaxpr.outvars, strict=True):
        place, layer = origin(jaxpr, v), tuple(layer)
        if place is not None and place < len(given) and given[place] == ("params", *layer, "kernel"):
            found.add(layer)
    return found


def by_element(equation: Any) -> bool:
    """Whether each element of the results is made of those at the same place, of operands that may be broadcast."""
    shapes, results = ([v.aval.shape for v in side] for side in (equation.invars, equation.outvars))
    return equation.primitive.name not in (*ACROSS, *LOOPS) and all(_fits(a, b) for a in shapes for b in results)


def _fits(shape: tuple[int, ...], result: tuple[int, ...]) -> bool:
    return not shape or (len(shape) == len(result) and all(n in (1, m) for n, m in zip(shape, result, strict=True)))
