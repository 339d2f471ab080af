"""Several processes of `jax.distributed` at one atlas: the first locks it and says what is left; all wait for all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxcircuits.errors import InputError


def join(given: str) -> None:
    """Become one of several processes of `jax.distributed`; before anything else is done with JAX.

    Args:
        given: "HOST:PORT,PROCESSES,ID" of the coordinator, how many there are and which this is; or "auto" where the
            environment says it, as on TPU pods and under SLURM.

    Raises:
        InputError: it is neither, or the others cannot be reached.
    """
    try:
        if given == "auto":
            jax.distributed.initialize()
        else:
            address, number, which = given.split(",")
            jax.distributed.initialize(address, int(number), int(which))
    except (ValueError, RuntimeError) as error:
        why = str(error).partition("\n")[0]
        raise InputError(f"--distributed is {given!r}; expected HOST:PORT,PROCESSES,ID or auto: {why}") from None


def first() -> bool:
    """Whether this is the process that writes what there is one of."""
    return jax.process_index() == 0


@contextlib.contextmanager
def agreed(chunks: int) -> Iterator[list[int]]:
    """A list, which the first process fills with numbers below `chunks`, and all have after the body.

    Raises:
        InputError: in the others, when the body failed in the first one.
    """
    numbers: list[int] = []
    try:
        yield numbers
    except BaseException:
        _told(np.full(chunks, -1))
        raise
    found = _told(np.isin(np.arange(chunks), numbers).astype(int))
    if (found < 0).any():
        raise InputError("the first of the processes could not begin; it says why")
    numbers[:] = np.flatnonzero(found).tolist()


def _told(values: np.ndarray) -> np.ndarray:
    """The first process's values, in all."""
    if jax.process_count() == 1:
        return values
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(values.astype(np.int32)))


def wait(what: str) -> None:
    """Until all processes are here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def check_devices(devices: Sequence[Any]) -> None:
    """Raise an InputError for devices that are not those of all processes."""
    if jax.process_count() > 1 and set(devices) != set(jax.devices()):
        raise InputError("with several processes an atlas is made on all their devices; name none of them")
    if not devices:
        raise InputError("there are no devices; expected at least one")
