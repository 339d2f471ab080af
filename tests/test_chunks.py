"""Parts that are collected: what joining them would give, in memory once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.chunks import Collected


@pytest.mark.parametrize("sizes", [(7,), (9,), (3, 4), (3, 3, 3), (4, 2, 1)])
def test_parts_one_after_the_other(sizes):
    """Seven in all; what goes beyond them fills up the last part."""
    rng = np.random.default_rng(0)
    parts = [{"a": rng.random((n, 2, 3), np.float32), "b": (rng.random((n, 4)) < 0.5,)} for n in sizes]
    collected = Collected(7)
    for part in parts:
        collected.add(jax.tree.map(jnp.asarray, part))
    expected = jax.tree.map(lambda *own: np.concatenate(own)[:7], *parts)
    jax.tree.map(np.testing.assert_array_equal, collected.whole, expected)
    assert jax.tree.structure(collected.whole) == jax.tree.structure(expected)


def test_parts_are_written_in_place():
    collected, places = Collected(64), set()
    for value in range(4):
        collected.add(jnp.full((16, 1000), value))
        (whole,) = jax.tree.leaves(collected._whole)
        places.add(whole.unsafe_buffer_pointer())
    assert len(places) == 1 and collected.whole[::16, 0].tolist() == [0, 1, 2, 3]
