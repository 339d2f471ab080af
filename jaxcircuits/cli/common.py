"""What the commands share: their options, and how errors reach the user."""

from __future__ import annotations

import _thread
import contextlib
import errno
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import jax

from jaxcircuits.ablation import ABLATIONS
from jaxcircuits.circuit import check_free
from jaxcircuits.criteria import ABSOLUTE as ABSOLUTES
from jaxcircuits.criteria import CRITERIA
from jaxcircuits.criteria import STEPS as DEFAULT_STEPS
from jaxcircuits.data import Images, read_images
from jaxcircuits.errors import MOST, InputError
from jaxcircuits.features import OBJECTIVES
from jaxcircuits.files import check_writable
from jaxcircuits.loading import load
from jaxcircuits.model import Model
from jaxcircuits.options import PRECISIONS
from weights_conversion import ConversionError


class BadInput(click.ClickException):
    """Prints its sentence as the last line of stderr; the exit code is 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"Error: {' '.join(self.message.splitlines())}", file=file, err=True)


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """Whatever is wrong with the input or the machine ends as `BadInput`."""
    try:
        yield
    except (InputError, ConversionError) as error:
        raise BadInput(str(error)) from error
    except OSError as error:
        if error.errno == errno.EPIPE:  # whoever reads our output has enough; click ends quietly
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise BadInput(f"the system says: {error.strerror or error}{where}") from error
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise BadInput("there is not enough memory; try fewer features or images at a time") from error
    except KeyboardInterrupt:
        click.echo("\nInterrupted.", err=True)
        raise SystemExit(130) from None


class Command(click.Command):
    def invoke(self, ctx: click.Context) -> Any:
        with one_sentence(), _settled():
            return super().invoke(ctx)


class Group(click.Group):
    command_class = Command


@contextlib.contextmanager
def _settled() -> Iterator[None]:
    """What only the command line may decide: how warnings look, and where compiled programs are kept."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs tracebacks of errors that it raises, too
    sys.unraisablehook = _unraisable
    for stream in (sys.stdout, sys.stderr):  # names of files and pictures may be anything
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "jaxcircuits", "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # there are many small programs
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*so that r is not defined")  # the tables say "constant"
        warnings.filterwarnings("ignore", message=".*persistent compilation cache")  # it is only for speed
        warnings.showwarning = lambda message, *_, **__: click.echo(f"Warning: {message}", err=True)
        yield


def _unraisable(told: Any) -> None:
    """What becomes of errors that nobody can catch."""
    if isinstance(told.exc_value, KeyboardInterrupt):  # it came within a destructor: once more, a little later
        threading.Timer(0.01, _thread.interrupt_main).start()
    elif not (isinstance(told.exc_value, RuntimeError) and "Event loop is closed" in str(told.exc_value)):
        sys.__unraisablehook__(told)  # the rest is of arrays that orbax was reading when another was found broken


class Place(click.Path):
    """A path that is not empty."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if value == "":
            self.fail("it is empty", param, ctx)
        return super().convert(value, param, ctx)


def not_empty(context: click.Context, option: click.Parameter, value: Any) -> Any:
    if value is not None and not str(value):
        raise click.BadParameter("it is empty")
    return value


def options(*given: Callable) -> Callable:
    """Several options at once, in their order in --help."""

    def with_all(command: Callable) -> Callable:
        for option in reversed(given):
            command = option(command)
        return command

    return with_all


WHOLE = click.IntRange(1, MOST)
WEIGHTS_HELP = "lpips (no download), torchvision[:NAME], random[:SEED], or a path."
IMAGES_HELP = "A folder, a picture, photos, photos:a, photos:b, tfds:NAME[:SPLIT], or uint8 .npy or .npz."
WEIGHTS = click.option("--weights", callback=not_empty, help=f"{WEIGHTS_HELP}  [default: lpips]")
IMAGES = click.option("--images", callback=not_empty, help=f"{IMAGES_HELP}  [default: photos]")
OTHER_WEIGHTS = click.option("--weights", callback=not_empty, help=f"{WEIGHTS_HELP}  [default: the circuit's]")
OTHER_IMAGES = click.option("--images", callback=not_empty, help=f"{IMAGES_HELP}  [default: the circuit's]")
ABLATION = click.option(
    "--ablation", type=click.Choice(ABLATIONS), default="zero", show_default=True,
    help="What stands in for a removed kernel: nothing, or its mean over images and positions.",
)  # fmt: skip
TRANSFORM = click.option(
    "--transform-input/--plain-input",
    default=None,
    help="Whether GoogLeNet or Inception v3 normalises its images again, as torchvision's pretrained ones do.  "
    "[default: for --weights torchvision and checkpoints made of it; for other files give it]",
)
RESIZE, OTHER_RESIZE = (
    click.option(
        "--resize",
        type=click.Choice(["crop", "squash"]),
        help=f"How pictures get to the input size: the centre cut out, or the whole squashed.  [default: {default}]",
    )
    for default in ("crop", "the circuit's")
)
STRICT = click.option("--strict", is_flag=True, help="Pictures that cannot be read are an error, not left out.")
OUT = click.option("--out", type=Place(), default=Path("circuits"), show_default=True, help="A directory.")
OVERWRITE = click.option("--force", is_flag=True, help="Overwrite files that hold something else.")
SEED = click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    help="Of what is random, and of learned masks.",
)
QUIET = click.option("--quiet", is_flag=True, help="Print nothing but warnings and errors.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
CRITERION = click.option(
    "--criterion", type=click.Choice(CRITERIA), default="snip", show_default=True, help="How kernels are scored."
)
GRANULARITY = click.option(
    "--granularity", type=click.Choice(["kernel", "filter"]), default="kernel", show_default=True,
    help="What is scored, kept and counted: kernels, or whole filters, which take less memory.",
)  # fmt: skip
KERNELS = click.option("--kernels", help="Numbers of kernels to keep, instead of --keep.")
LEVEL = (
    click.option("--keep", type=float, help="The level of the atlas; need not be given where it has one."),
    click.option(
        "--kernels", type=click.IntRange(min=1), help="The level of an atlas that was asked for numbers of kernels."
    ),
)
ABSOLUTE = click.option(
    "--absolute",
    type=click.Choice(ABSOLUTES),
    default="per_image",
    show_default=True,
    help="Where absolute values are taken: of each image's gradient, of their sum, or nowhere.",
)
OBJECTIVE = click.option(
    "--objective",
    type=click.Choice(OBJECTIVES),
    default="abs",
    show_default=True,
    help="What is made of a feature's map: the sum of its absolute values, its sum or its largest value.",
)
STEPS = click.option(
    "--steps", type=WHOLE,
    help="Rounds of force; steps of learned once a circuit has its size, after half as many a shrink to 1/e.  "
    f"[default: {', '.join(f'{steps} for {name}' for name, steps in DEFAULT_STEPS.items())}]",
)  # fmt: skip
PRECISION = click.option(
    "--precision", type=click.Choice(list(PRECISIONS)), default="float32", show_default=True,
    help="Of products, on hardware that has others.",
)  # fmt: skip
CHUNK = click.option("--chunk", type=WHOLE, help="Features scored together.  [default: what fits in memory, up to 64]")
BATCH = click.option("--batch", type=WHOLE, help="Images scored together; by default a few.")


def keep_option(default: str) -> Callable:
    help = f"Fractions of the relevant kernels to keep, comma-separated.  [default: {default}]"
    return click.option("--keep", help=help)


def network_given(model: str, weights: str | None, transform_input: bool | None, seed: int = 0) -> Model:
    """The network that was asked for, with weights from the default source if none was."""
    return load(model, weights="lpips" if weights is None else weights, seed=seed, transform_input=transform_input)


def images_given(
    source: str | None, model: Model, resize: str | None, strict: bool, limit: int | None = None
) -> Images:
    """The images that were asked for, by default the photographs that come along."""
    return read_images(source or "photos", model, resize=resize or "crop", strict=strict, limit=limit)


def heading(model: str, weights: str | None, number: int, images: str | None) -> str:
    """What a command says first: with which network and images it works."""
    return f"{model} with weights {told(weights, 'lpips')}, {number} images: {told(images, 'photos')}"


def free_places(paths: Sequence[Path], manifests: Sequence[Mapping[str, Any]], *, force: bool, otherwise: str) -> None:
    """An InputError if two circuits have one place, or if one has what must not be overwritten or cannot be written."""
    taken: dict[Path, Mapping[str, Any]] = {}
    for path, manifest in zip(paths, manifests, strict=True):
        if taken.setdefault(path, manifest) != manifest:
            raise InputError(f"two different circuits would be written to {str(path)!r}; {otherwise}")
    for path, manifest in taken.items():
        check_writable(path)
        if not force:
            check_free(path, manifest)


def numbers(name: str, text: str, kind: type) -> list:
    """What stands behind --NAME, comma-separated."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise InputError(f"--{name} is {text!r}; expected {what}, comma-separated") from None


def told(given: str | None, default: str) -> str:
    """What was given, or what is taken instead."""
    return given or f"{default} (the default)"
