"""`Images`: pictures from any source, read again and again, block by block."""

import hashlib
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from jaxcircuits.errors import InputError

T = TypeVar("T")


class Preprocessing(Protocol):
    """What `read_images` asks of a model: sizes in pixels, mean and standard deviation of values from 0 to 1."""

    @property
    def input_size(self) -> int: ...
    @property
    def resize_size(self) -> int: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


@dataclass(frozen=True)
class Pictures:
    """What a source offers before anyone knows how much of it can be read.

    Attributes:
        total: how many pictures there may be, N; at least 1.
        name: the name of picture i, 0 <= i < N.
        read: picture i, uint8 (H, W, 3), all of one shape.
        check: fails where `read` fails, in less time; None where nothing is expected to fail.
    """

    total: int
    name: Callable[[int], str]
    read: Callable[[int], np.ndarray]
    check: Callable[[int], object] | None = None


class Images:
    """A set of images, made by `read_images`: `len()` counts them, every iteration reads them anew.

    Iterating yields blocks (n, H, W, 3) of normalised float32. Files that cannot be decoded are left out, with one
    warning. Which ones is found out by the first complete iteration, or by whatever needs to know it earlier (`len`,
    `names`, `skipped`) in a quick look at every file. Each iteration gives the same images or ends in an `InputError`.

    Attributes:
        source: the source, as it was given.
        resize: how pictures are brought to the input size, "crop" or "squash"; None where they have it.
        batch: the most images in one block.
    """

    def __init__(
        self,
        source: str,
        pictures: Pictures,
        like: Preprocessing,
        *,
        resize: str | None,
        strict: bool,
        batch: int,
        limit: int | None,
    ) -> None:
        self.source, self.resize, self.batch = source, resize, batch
        self._pictures, self._strict, self._limit = pictures, strict, limit
        self._mean, self._std = np.asarray(like.mean, np.float32), np.asarray(like.std, np.float32)
        self._skipped: tuple[tuple[str, str], ...] = ()
        self._digest: str | None = None
        self._readable: Sequence[int] | None = None  # indices into the pictures, once they are known
        if pictures.check is None:
            self._readable = range(pictures.total)[:limit]
        elif strict:
            self._settled()
        else:
            next(self._walk(pictures.check), None)  # one readable picture will do; none at all is an error

    def __len__(self) -> int:
        return len(self._settled())

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self.uint8():
            yield (block / np.float32(255) - self._mean) / self._std

    def __repr__(self) -> str:
        return f"Images({self.source!r}, resize={self.resize!r}, batch={self.batch})"

    def uint8(self) -> Iterator[np.ndarray]:
        """The same blocks before normalisation, (n, H, W, 3) uint8.

        Raises:
            InputError: if an image can no longer be read, or if the images are not those of the iteration before.
        """
        sha, block, count, shape = hashlib.sha256(), [], 0, ()
        for picture in self._walk(self._pictures.read):
            sha.update(np.ascontiguousarray(picture).data)
            block.append(picture)
            count, shape = count + 1, picture.shape
            if len(block) == self.batch:
                yield np.stack(block)
                block = []
        if block:
            yield np.stack(block)
        sha.update(repr((count, *shape)).encode())
        if self._digest not in (None, sha.hexdigest()):
            raise InputError(f"the images in {self.source!r} have changed since they were first read; open them again")
        self._digest = sha.hexdigest()

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all uint8 pixels in order, followed by the shape (N, H, W, 3); independent of `batch`."""
        if self._digest is None:
            deque(self.uint8(), maxlen=0)
        assert self._digest is not None
        return self._digest

    @property
    def names(self) -> tuple[str, ...]:
        """One name per image: a path relative to the folder, "astronaut#2", "test#17"."""
        return tuple(map(self._pictures.name, self._settled()))

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """(path, reason) of every file that could not be decoded."""
        self._settled()
        return self._skipped

    def _settled(self) -> Sequence[int]:
        if self._readable is None:
            deque(self._walk(self._pictures.check or self._pictures.read), maxlen=0)
        assert self._readable is not None
        return self._readable

    def _walk(self, read: Callable[[int], T]) -> Iterator[T]:
        """What `read` gives for each readable picture; the first walk to its end settles which ones those are."""
        settled, readable, skipped = self._readable, [], []
        for i in range(self._pictures.total) if settled is None else settled:
            try:
                result = read(i)
            except MemoryError:  # says nothing about the file
                raise
            except Exception as error:  # decoders fail in many ways: OSError, SyntaxError, struct.error, ...
                name, why = self._pictures.name(i), reason(error)
                if settled is not None:
                    raise InputError(f"{name!r} in {self.source!r} cannot be read: {why}") from error
                skipped.append((name, why))
                continue
            readable.append(i)
            yield result
            if len(readable) == self._limit:
                break
        if self._readable is None:
            self._settle(readable, tuple(skipped))

    def _settle(self, readable: list[int], skipped: tuple[tuple[str, str], ...]) -> None:
        example = "the first {!r} ({})".format(*skipped[0]) if skipped else ""
        if not readable:
            raise InputError(f"nothing in {self.source!r} can be read as a picture; of {len(skipped)} files {example}")
        bad = f"{len(skipped)} of {len(skipped) + len(readable)} files in {self.source!r} cannot be read"
        if skipped and self._strict:
            raise InputError(f"{bad}, {example}")
        self._readable, self._skipped = readable, skipped
        if skipped:
            warnings.warn(f"{bad} and are skipped, {example}", stacklevel=4)


def reason(error: Exception) -> str:
    """Why something could not be read, as a part of a sentence."""
    return (str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(".")
