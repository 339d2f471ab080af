"""Baselines that look at no image. Like every score they count only among relevant kernels."""

import hashlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import Array

# which of a weight's axes (K, I, O) scores have
FROM = {"weight": 0, "kernel": 1, "filter": 2}


def magnitude(
    weights: Mapping[str, Array], labels: Sequence[str], *, granularity: str = "kernel", seed: int = 0
) -> dict[str, Array]:
    """S[i,o] = 1/K sum_k |w[k,i,o]|, the same for every feature: {layer: (K, I, O)} -> {layer: (F, I, O)}.

    Of weights |w|, (F, K, I, O); of filters the mean over their relevant kernels, which is taken later.
    """
    scores = {name: jnp.abs(w) if granularity == "weight" else jnp.abs(w).mean(0) for name, w in weights.items()}
    return {name: jnp.broadcast_to(s, (len(labels), *s.shape)) for name, s in scores.items()}


def random(
    weights: Mapping[str, Array], labels: Sequence[str], *, granularity: str = "kernel", seed: int = 0
) -> dict[str, Array]:
    """Uniform in [0, 1), drawn from the seed, the feature's label and the layer's name alone, for each weight, kernel
    or filter: {layer: (K, I, O)} -> {layer: (F, K, I, O), (F, I, O) or (F, O)}."""

    def draw(label: str, name: str, w: Array) -> Array:
        word = hashlib.sha256(f"{label} {name}".encode()).digest()[:4]
        key = jax.random.fold_in(jax.random.key(seed), int.from_bytes(word))
        return jax.random.uniform(key, w.shape[FROM[granularity] :])

    return {name: jnp.stack([draw(label, name, w) for label in labels]) for name, w in weights.items()}
