"""What a circuit's manifest may say, for tests that need no circuit that was ever computed."""

from typing import Any

MANIFEST: dict[str, Any] = {
    "model": "alexnet",
    "weights": {"source": "lpips", "sha256": "0" * 64},
    "images": {"source": "photos", "resize": "crop", "number": 48, "digest": "1" * 64},
    "criterion": "snip",
    "absolute": "per_image",
    "feature": {"layer": "features.3", "channel": 3, "position": None},
    "objective": "abs",
    "keep": 0.05,
    "kernels": None,
    "relevant": 18,
    "kept": 9,
    "effective": 7,
    "correlation": 0.5,
    "layers": ["features.0", "features.3"],
    "versions": {"jax": "1"},
}
