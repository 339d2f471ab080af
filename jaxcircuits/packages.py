"""Packages that only extras bring: imported when they are needed, and missed in one sentence that names the extra."""

from __future__ import annotations

import importlib
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import Any

from jaxcircuits.errors import InputError
from weights_conversion.errors import reason

EXTRAS = {  # module -> the extra that brings it, and the package's own name
    "distributed": ("cluster", "distributed"),
    "filelock": ("atlas", "filelock"),
    "jinja2": ("pages", "jinja2"),
    "networkx": ("pages", "networkx"),
    "onnx": ("onnx", "onnx"),
    "onnxscript": ("onnx", "onnxscript"),
    "pandas": ("atlas", "pandas"),
    "pyarrow": ("atlas", "pyarrow"),
    "scipy": ("atlas", "scipy"),
    "skimage": ("demo", "scikit-image"),
    "sklearn": ("maps", "scikit-learn"),
    "torch": ("convert", "torch"),
    "umap": ("maps", "umap-learn"),
}


def needed(module: str, what: str) -> Any:
    """Import a module of an extra.

    Args:
        module: its name; "scipy.cluster.hierarchy" belongs to the extra of "scipy".
        what: who needs it, the beginning of the sentence: "an atlas".

    Raises:
        InputError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == module.partition(".")[0]:
            raise missing(module, what) from None
        raise missing(module, what, f"cannot be imported ({reason(error)})") from error
    except ImportError as error:  # it is there, but not for this Python or beside these packages
        raise missing(module, what, f"cannot be imported ({reason(error)})") from error


def installed(module: str, what: str, extra: str | None = None) -> ModuleSpec:
    """Where a module of an extra lies; it is not imported, which may take seconds.

    Args:
        module, what: as for `needed`.
        extra: the one to install, where it is not the usual one.

    Raises:
        InputError: it is not installed.
    """
    spec = find_spec(module)
    if spec is None:
        raise missing(module, what, extra=extra)
    return spec


def missing(module: str, what: str, trouble: str = "is not installed", extra: str | None = None) -> InputError:
    """The sentence: what is wanting, and the extra to install."""
    usual, package = EXTRAS[module.partition(".")[0]]
    install = f"pip install 'jaxcircuits[{extra or usual}]'"
    return InputError(f"{what} needs the package {package}, which {trouble}; expected after {install}")
