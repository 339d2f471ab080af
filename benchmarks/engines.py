"""The three engines, each served by a process of its own: thread pools do not disturb each other, memory is its own."""

import gc
import multiprocessing
import os
import time
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.memory import peak_bytes, reset_peak
from jaxcircuits.faithfulness import KEEPS

# One feature at a time costs the reference the same for each: it is timed on this many.
REFERENCE_FEATURES = {"actgrad": 1, "snip": 4, "snip whole_set": 2}
# Large arrays in huge pages (glibc, Linux): fewer page faults for all three.
HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
ENVIRONMENT = {
    "jaxcircuits": HUGE | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},  # of a GPU, which the three share
    "reference": HUGE | {"JAX_PLATFORMS": "cpu"},
    # memory that is freed is kept for the next tensor, as PyTorch's tuning guide advises
    "strong": HUGE | {"JAX_PLATFORMS": "cpu", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)},
}


def images_of(case: Case):
    """The model and the first N bundled photographs, again from the start if there are fewer: (N, H, W, 3)."""
    import jaxcircuits as jc

    model = jc.load(case.model)
    photos = np.concatenate(list(jc.read_images("photos", model, limit=case.images)))
    return model, np.resize(photos, (case.images, *photos.shape[1:]))


class Ours:
    """jaxcircuits."""

    def prepare(self, case: Case) -> None:
        import jaxcircuits as jc

        self.jc, self.case = jc, case
        self.model, self.images = images_of(case)
        self.features = jc.Features(case.layer, case.channels)
        self.scores = jc.score(self.model, self.images, self.features) if case.what == "curve" else None

    def run(self) -> list[np.ndarray]:
        import jax

        if self.scores is not None:
            return [self.jc.curve(self.model, self.images, self.features, self.scores, KEEPS)]
        criterion, _, absolute = self.case.what.partition(" ")
        options = {"criterion": criterion, "absolute": absolute or "per_image"}
        if self.case.keep:
            options = {"criterion": criterion, "keep": self.case.keep}
        scores = self.jc.score(self.model, self.images, self.features, **options)
        values = jax.block_until_ready(scores.values)
        return [np.swapaxes(np.asarray(values[name]), 1, 2) for name in scores.layers]

    def features_done(self) -> int:
        return self.case.features


class Torch:
    """A PyTorch baseline."""

    def __init__(self, strong: bool) -> None:
        self.strong = strong

    def prepare(self, case: Case) -> None:
        import torch

        import jaxcircuits as jc
        from benchmarks.torch_networks import Convolutions

        torch.backends.cudnn.allow_tf32 = False  # the same precision for all three
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.case = case
        model, images = images_of(case)
        layout = torch.channels_last if self.strong else torch.contiguous_format
        self.network = Convolutions(model, case.layer).to(self.device)
        self.images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(self.device, memory_format=layout)
        for convolution in self.network.convolutions:
            convolution.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        self.masks = []
        if case.what == "curve":
            scores = jc.score(model, images, jc.Features(case.layer, case.channels))
            for keep in KEEPS:
                kept = jc.top_kernels(scores, keep=keep)
                masks = [np.asarray(kept[name][0]).T.astype(np.float32) for name in scores.layers]
                self.masks.append([torch.from_numpy(mask).to(self.device) for mask in masks])

    def run(self) -> list[np.ndarray]:
        from benchmarks import reference, strong

        engine = strong if self.strong else reference
        channels = self.case.channels[: self.features_done()]
        if self.case.what == "curve":
            return [engine.curve(self.network, self.images, channels[0], self.masks).cpu().numpy()[None]]
        if self.case.keep:
            return [s.cpu().numpy() for s in reference.force(self.network, self.images, channels, self.case.keep)]
        return [s.cpu().numpy() for s in engine.run(self.case.what, self.network, self.images, channels)]

    def features_done(self) -> int:
        return self.case.features if self.strong else min(self.case.features, REFERENCE_FEATURES.get(self.case.what, 1))


def engine(name: str) -> Ours | Torch:
    return Ours() if name == "jaxcircuits" else Torch(strong=name == "strong")


def serve(name: str, case: Case, pipe: Any) -> None:
    """Answer "first" with the results and the seconds of the first run, "run" with seconds a feature and image, "stop"
    with the peak memory in bytes.

    Of two runs in a row the second is timed: the first one clears caches and memory of what the other engines left.
    """
    worker = engine(name)
    worker.prepare(case)
    gc.collect()
    reset_peak()
    peak, library = 0, "jax" if name == "jaxcircuits" else "torch"
    while (order := pipe.recv()) != "stop":
        if order == "run":
            worker.run()
        start = time.perf_counter()
        results = worker.run()
        seconds = (time.perf_counter() - start) / worker.features_done() / case.images
        peak = max(peak, peak_bytes(library))  # before what takes the results to the other process
        pipe.send((results, seconds) if order == "first" else seconds)
        del results
        reset_peak()
    pipe.send(peak)


class Remote:
    """An engine in another process."""

    def __init__(self, name: str, case: Case) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(name, case, other), daemon=True)
        with _environment(ENVIRONMENT[name]):
            self.process.start()

    def ask(self, order: str) -> Any:
        self.pipe.send(order)
        while not self.pipe.poll(1):
            if not self.process.is_alive():
                raise RuntimeError(f"a benchmark process ended with exit code {self.process.exitcode}")
        return self.pipe.recv()

    def stop(self) -> int:
        """End the process; returns its peak memory in bytes."""
        peak = self.ask("stop")
        self.process.join()
        return peak


@contextmanager
def _environment(changes: dict[str, str]):
    """These variables for processes started in the body."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
