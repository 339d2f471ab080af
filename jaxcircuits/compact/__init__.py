"""Circuits as smaller networks. plan.py finds what a circuit needs, narrow.py runs a network's operations on fewer
channels (parts.py) by the rules of rules.py, module.py makes a linen module of both."""

from jaxcircuits.compact.module import compact

__all__ = ["compact"]
