"""The three engines, each served by a process of its own: thread pools do not disturb each other, memory is its own."""

import multiprocessing
import resource
import sys
import time
from typing import Any

import numpy as np

from benchmarks.cases import Case
from jaxcircuits.faithfulness import KEEPS

NAMES = ("jaxcircuits", "reference", "strong")
# One feature at a time costs the reference the same for each: it is timed on this many.
REFERENCE_FEATURES = {"actgrad": 1, "snip": 4, "snip whole_set": 2, "curve": 1}


def images_of(case: Case):
    """The first N bundled photographs, normalised, (N, H, W, 3)."""
    import jaxcircuits as jc

    model = jc.load(case.model)
    return model, np.concatenate(list(jc.read_images("photos", model, limit=case.images)))


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
        scores = self.jc.score(self.model, self.images, self.features, **options)
        jax.block_until_ready(scores.values)
        return [np.swapaxes(np.asarray(scores.values[name]), 1, 2) for name in scores.layers]

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

        self.case = case
        model, images = images_of(case)
        self.network = Convolutions(model, case.layer)
        self.images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        self.masks = []
        if case.what == "curve":
            scores = jc.score(model, images, jc.Features(case.layer, case.channels))
            for keep in KEEPS:
                kept = jc.top_kernels(scores, keep=keep)
                self.masks.append(
                    [torch.from_numpy(np.asarray(kept[n][0]).T.astype(np.float32)) for n in scores.layers]
                )
        if self.strong:
            self.network = self.network.to(memory_format=torch.channels_last)  # pyright: ignore
            self.images = self.images.to(memory_format=torch.channels_last)

    def run(self) -> list[np.ndarray]:
        from benchmarks import reference, strong

        channels = self.case.channels[: self.features_done()]
        if self.case.what == "curve":
            return [reference.curve(self.network, self.images, channels[0], self.masks).numpy()[None]]
        engine = strong if self.strong else reference
        return [scores.numpy() for scores in engine.run(self.case.what, self.network, self.images, channels)]

    def features_done(self) -> int:
        return self.case.features if self.strong else min(self.case.features, REFERENCE_FEATURES[self.case.what])


def engine(name: str) -> Ours | Torch:
    return Ours() if name == "jaxcircuits" else Torch(strong=name == "strong")


def serve(name: str, case: Case, pipe: Any) -> None:
    """Answer "first" with the results and the seconds of the first run, "run" with seconds a feature and image."""
    worker = engine(name)
    worker.prepare(case)
    while (order := pipe.recv()) != "stop":
        start = time.perf_counter()
        results = worker.run()
        seconds = time.perf_counter() - start
        if order == "first":
            pipe.send((results, seconds))
        else:
            pipe.send(seconds / worker.features_done() / case.images)
    # kilobytes, but bytes on macOS
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


class Remote:
    """An engine in another process."""

    def __init__(self, name: str, case: Case) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(name, case, other), daemon=True)
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
