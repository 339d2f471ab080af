"""Threads that work ahead of whoever takes the results, a bounded number, in order."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from threading import Event
from typing import TypeVar

from jaxcircuits.threads import pool, processors

S = TypeVar("S")
T = TypeVar("T")

# Each holds a whole picture, a hundred times the size of what becomes of it.
THREADS = min(8, processors())
# Files that are open at once, of which systems give a process some hundred.
OPEN = 64


@contextlib.contextmanager
def ahead(
    numbers: Iterable[int],
    open: Callable[[int], AbstractContextManager[S]],
    work: Callable[[S], T],
    *,
    threads: int,
    most: int,
) -> Iterator[Iterator[tuple[int, Callable[[], T]]]]:
    """Opens things in the caller's thread and works on them in others, which end with the context.

    Args:
        numbers: of the things.
        open: opens one.
        work: what is done with an open one, before it is closed.
        threads: how many do the work; 0 for none but the caller's, and nothing ahead.
        most: how many things are opened ahead of the one that is taken; no more than `OPEN`.

    Yields:
        An iterator of (number, result), in order; `result()` waits, and raises what `open` or `work` raised.
    """

    def finished(opened: AbstractContextManager[S]) -> T | None:
        with opened as thing:
            return None if stopped.is_set() else work(thing)

    def here(number: int) -> T:
        with open(number) as thing:
            return work(thing)

    def submitted(number: int) -> Future:
        try:
            return working.submit(finished, open(number))
        except Exception as error:  # is raised when its turn comes
            return working.submit(_raise, error)

    def results() -> Iterator[tuple[int, Callable[[], T]]]:
        waiting: deque[tuple[int, Future]] = deque()
        for number in numbers:
            waiting.append((number, submitted(number)))
            if len(waiting) > min(most, OPEN):
                number, future = waiting.popleft()
                yield number, future.result
        for number, future in waiting:
            yield number, future.result

    if not threads:
        yield ((number, partial(here, number)) for number in numbers)
        return
    stopped = Event()
    with pool(threads, "ahead") as working:
        try:
            yield results()
        finally:
            stopped.set()  # what is open and not worked on is only closed


def _raise(error: Exception) -> None:
    raise error
