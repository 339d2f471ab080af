"""Packages of the extras `atlas` and `cluster`, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from jaxcircuits.errors import InputError


def needed(package: str, extra: str = "atlas") -> Any:
    """The package, or an InputError that says what to install."""
    try:
        return importlib.import_module(package)
    except ImportError:
        install = f"pip install 'jaxcircuits[{extra}]'"
        raise InputError(f"the package {package} is missing; expected after {install}") from None
