"""Device calls that run at the same time, each in a thread of its own.

A CPU runs what one thread gives it one after another, each call on all cores; its many small products are not worth
sharing out, and a call for each core is faster.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import jax

from jaxcircuits.threads import pool

T = TypeVar("T")


class Streams(Generic[T]):
    """Values that go on in turn: each is the result of the work that was given to its stream last."""

    def __init__(self, values: Iterable[T]) -> None:
        self._values = list(values)
        self._number = len(self._values)
        self._pool = pool(self._number, "stream") if self._number > 1 else None
        self._running = []

    def go_on(self, work: Callable[..., T], *arguments) -> None:
        """The next stream's value becomes work(value, *arguments); waits until that stream is free."""
        if self._pool is None:
            self._values[0] = work(self._values[0], *arguments)
            return
        if len(self._running) == self._number:
            self._values.append(self._running.pop(0).result())
        value = self._values.pop(0)
        self._running.append(self._pool.submit(_finished, work, value, *arguments))

    def results(self) -> tuple[T, ...]:
        """The values, when all work is done."""
        return (*self._values, *(running.result() for running in self._running))

    def __enter__(self) -> Streams[T]:
        return self

    def __exit__(self, *_) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def _finished(work: Callable[..., T], *arguments) -> T:
    """The result of the work, in a thread, which has settings of its own: float32, whatever the program's are."""
    with jax.enable_x64(False):
        return jax.block_until_ready(work(*arguments))


@contextlib.contextmanager
def side_by_side(threads: int) -> Iterator[Callable[..., list]]:
    """A `map` that works in so many threads, on the caller's default device, and waits for all results."""
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    with pool(threads, "beside") as beside:

        def mapped(work: Callable[..., T], *arguments: Iterable) -> list[T]:
            def here(*one) -> T:
                with jax.default_device(device):
                    return _finished(work, *one)

            return list(beside.map(here, *arguments))

        yield mapped
