"""How fast jaxcircuits is, next to PyTorch: `python -m benchmarks`.

Three engines compute the same scores, each in a process of its own: jaxcircuits, `reference` (what the paper's program
does, one feature at a time) and `strong` (the best PyTorch that we can write). They are first asserted to agree, then
timed in turn.
"""
