"""`Images`: pictures from any source, read again and again, block by block."""

import hashlib
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from jaxcircuits.data.ahead import ahead
from jaxcircuits.errors import InputError

T = TypeVar("T")


class Preprocessing(Protocol):
    """What `read_images` asks of a model: sizes in pixels, mean and standard deviation of values from 0 to 1; and
    `interpolation`, if it has one, "bilinear" (the default) or "bicubic"."""

    @property
    def input_size(self) -> int: ...
    @property
    def resize_size(self) -> int: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


class ImageNet(NamedTuple):
    """What networks that were trained on ImageNet expect, nearly all."""

    input_size: int = 224
    resize_size: int = 256
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Pictures:
    """What a source offers before anyone knows how much of it can be read.

    Attributes:
        total: how many pictures there may be, N; at least 1.
        name: the name of picture i, 0 <= i < N.
        read: picture i, uint8 (H, W, 3), all of one shape; from what `open(i)` gives.
        check: fails where `read` fails, in less time; None where nothing is expected to fail.
        open: what has to be done in the caller's thread, and soon; by default nothing.
        threads: how many may read at once; 0 where there is no work to be done ahead.
        resizable: whether `resize` has a say in how they come to their size.
    """

    total: int
    name: Callable[[int], str]
    read: Callable[[Any], np.ndarray]
    check: Callable[[Any], object] | None = None
    open: Callable[[int], AbstractContextManager[Any]] = nullcontext
    threads: int = 0
    resizable: bool = False


class Images:
    """A set of images, made by `read_images`: `len()` counts them, every iteration reads them anew.

    Iterating yields blocks (n, H, W, 3) of normalised float32. Files that cannot be decoded are left out, with one
    warning. Which ones is found out by the first complete iteration, or by whatever needs to know it earlier (`len`,
    `names`, `skipped`) in a quick look at every file. Each iteration gives the same images or ends in an `InputError`.
    While a block is used, threads decode the next; they end with the iteration.

    Attributes:
        source: the source, as it was given; "./photos" for a folder of that name.
        resize: how pictures are brought to the input size, "crop" or "squash"; None where they have it.
        batch: the most images in one block, and the most that are read ahead.
    """

    def __init__(
        self,
        source: str,
        pictures: Pictures,
        like: Preprocessing,
        *,
        resize: str,
        strict: bool,
        batch: int,
        limit: int | None,
    ) -> None:
        if (channels := getattr(like, "channels", 3)) != 3:
            raise InputError(f"pictures have 3 channels, the model's images {channels}; expected an array of those")
        self.source, self.batch = source, batch
        self.resize = resize if pictures.resizable else None
        self._pictures, self._strict, self._limit = pictures, strict, limit
        self._mean, self._std = np.asarray(like.mean, np.float32), np.asarray(like.std, np.float32)
        self._skipped: tuple[tuple[str, str], ...] = ()
        self._digest: str | None = None
        self._shape: tuple[int, int, int] | None = None
        self._readable: Sequence[int] | None = None  # indices into the pictures, once they are known
        if pictures.check is None:
            self._readable = range(pictures.total)[:limit]
        elif strict:
            self._settled()
        else:
            next(self._walk(pictures.check, threads=0), None)  # one readable picture will do; none at all is an error

    def __len__(self) -> int:
        return len(self._settled())

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self.uint8():
            normal, ones = block / np.float32(255), np.ones(block.shape[1:], np.float32)
            normal -= ones * self._mean  # several times as fast as with three numbers, and of the same bits
            normal /= ones * self._std
            yield normal

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
    def shape(self) -> tuple[int, int, int]:
        """(H, W, 3) of every image."""
        if self._shape is None:
            height, width, channels = next(self._walk(self._pictures.read, threads=0)).shape
            self._shape = height, width, channels
        return self._shape

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

    def _walk(self, read: Callable[[Any], T], threads: int | None = None) -> Iterator[T]:
        """What `read` gives for each readable picture; the first walk to its end settles which ones those are."""
        settled, readable, skipped = self._readable, [], []
        numbers = range(self._pictures.total) if settled is None else settled
        threads = self._pictures.threads if threads is None else threads
        with ahead(numbers, self._pictures.open, read, threads=threads, most=self.batch) as results:
            for i, result in results:
                try:
                    picture = result()
                except MemoryError:  # says nothing about the file
                    raise
                except Exception as error:  # decoders fail in many ways: OSError, SyntaxError, struct.error, ...
                    name, why = self._pictures.name(i), reason(error)
                    if settled is not None:
                        raise InputError(f"{name!r} in {self.source!r} cannot be read: {why}") from error
                    skipped.append((name, why))
                    continue
                readable.append(i)
                yield picture
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
