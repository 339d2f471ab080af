"""Start-up and conversion: short programs, each timed in fresh processes, next to what PyTorch users would run."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jaxcircuits as jc
from weights_conversion import write_state

# What is timed inside the process stands between the two readings of the clock; what comes before only prepares.
FRAME = """
import time
{prepare}
start = time.perf_counter()
{timed}
print(time.perf_counter() - start)
"""
# {all}: a whole AlexNet as torchvision saves it; {convolutions}: what `jaxcircuits.load` finds without a network
TORCH = "import torch; torch.load({%s!r}, weights_only=True)"
PROGRAMS: dict[str, dict[str, tuple[str, str]]] = {
    "start-up: import, load AlexNet": {
        "jaxcircuits": ("", "import jaxcircuits; jaxcircuits.load('alexnet')"),
        "torch": ("", TORCH % "convolutions"),
    },
    "conversion: AlexNet's .pth to Flax": {
        "jaxcircuits": (
            "import jax\n"
            "from jaxcircuits.models import ARCHITECTURES\n"
            "from weights_conversion import read_file, to_flax\n"
            "image = jax.ShapeDtypeStruct((1, 224, 224, 3), 'float32')\n"
            "template = jax.eval_shape(ARCHITECTURES['alexnet']().init, jax.random.key(0), image)",
            "to_flax(read_file({all!r}), template)",
        ),
        "torch": ("import torch", TORCH % "all"),
    },
}


def measure(rounds: int, names: list[str]) -> list[dict[str, Any]]:
    """Time each program in turn; for start-up the whole process. The first round only warms the disk's cache."""
    if not names:
        return []
    with tempfile.TemporaryDirectory() as folder:
        files = {name: f"{folder}/{name}.pth" for name in ("all", "convolutions")}
        write_state(Path(files["all"]), jc.load("alexnet", weights="random").state_dict())
        write_state(Path(files["convolutions"]), jc.load("alexnet").state_dict())
        return [_measure(name, PROGRAMS[name], files, rounds) for name in names]


def _measure(name: str, programs: dict[str, tuple[str, str]], files: dict[str, str], rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {engine: [] for engine in programs}
    whole = name.startswith("start-up")
    for _ in range(rounds + 1):
        for engine, (prepare, timed) in programs.items():
            code = FRAME.format(prepare=prepare, timed=timed.format(**files))
            start = time.perf_counter()
            printed = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)
            seconds[engine].append(time.perf_counter() - start if whole else float(json.loads(printed.stdout)))
    kept = {engine: values[1:] for engine, values in seconds.items()}
    pairs = zip(kept["torch"], kept["jaxcircuits"], strict=True)
    return {
        "program": name,
        "seconds": {engine: statistics.median(values) for engine, values in kept.items()},
        "ratio": {"torch": statistics.median(theirs / ours for theirs, ours in pairs)},
    }
