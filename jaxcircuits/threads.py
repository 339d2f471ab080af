"""Threads of this process: how many there may be, and that all have ended before it does."""

from __future__ import annotations

import atexit
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax  # noqa: F401 - first, so that what it does at the end of a process comes after what is done here


def processors() -> int:
    """How many threads can run at the same time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pool(number: int, name: str) -> ThreadPoolExecutor:
    """So many threads, which have ended before the process does."""
    return ThreadPoolExecutor(number, f"jaxcircuits-{name}")


@atexit.register
def _all_ended() -> None:
    """Wait for threads whose `join` was interrupted: before 3.13 Python takes them for ended (CPython issue 90882).

    One that still lets go of arrays while Python shuts down is stopped within jaxlib's C++, which aborts the process.
    """
    others = {thread for thread in threading.enumerate() if not thread.daemon} - {threading.current_thread()}
    while others & set(threading.enumerate()):
        time.sleep(0.001)
