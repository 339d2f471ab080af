"""Builds one atlas again and again, in processes that are killed at random moments. Run by test_atlas.py.

Prints a line of JSON for each process: whether it was killed, how many chunks were there before and after it.
"""

import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np

import jaxcircuits as jc
from tests.twins import Small, random_variables


def build(root: Path) -> None:
    options = {"train": False}
    variables = random_variables(Small(), (1, 13, 13, 3), **options)
    model = jc.Model(Small(), variables, name="small", apply_options=options, input_size=13)
    images = np.random.default_rng(1).standard_normal((5, 13, 11, 3), np.float32)
    features = [jc.Features("features.0"), jc.Features("features.0", position="middle")]
    jc.build_atlas(model, images, features, directory=root, keep=[0.5, 0.2], chunk=1, batch=2, scores="float16")


def run(root: Path, kill: tuple[int, float] | None) -> int:
    """Build in a process of its own, which is killed so many chunks and seconds later; how it ended."""
    before = chunks(root)
    started = time.monotonic()
    child = os.fork()
    if not child:
        warnings.simplefilter("ignore")
        code = 1
        try:
            build(root)
            code = 0
        finally:
            os._exit(code)
    if kill is not None:
        while chunks(root) < before + kill[0] and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.002)
        time.sleep(kill[1])
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    found = {"killed": os.WIFSIGNALED(status), "before": before, "chunks": chunks(root)}
    found["seconds"] = time.monotonic() - started
    print(json.dumps({"directory": str(root), **found}))
    if kill is None and status:
        sys.exit(1)
    return os.waitstatus_to_exitcode(status)


def chunks(root: Path) -> int:
    return len(list(root.glob("*/*.json")))


def main(folder: Path, kills: int) -> None:
    jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    run(folder / "compiling", None)
    started = time.monotonic()
    run(folder / "whole", None)
    whole = time.monotonic() - started
    rng, root = random.Random(0), folder / "killed-0"
    while kills:
        if chunks(root) == chunks(folder / "whole"):
            run(root, None)  # the tables may be missing
            root = folder / f"killed-{int(root.name.partition('-')[2]) + 1}"
        later = rng.randint(0, 3)
        kills -= run(root, (later, rng.uniform(0, 0.05 if later else whole))) == -signal.SIGKILL
    run(root, None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
