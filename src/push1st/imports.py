"""Imports libraries without their optional dependencies, because unused modules cost CPU time and memory in each process."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without(name: str) -> Iterator[None]:
    """Lets the imports of a block find no package `name`, unless it is already imported."""
    modules: dict[str, Any] = sys.modules
    if name in modules:
        yield
        return
    modules[name] = None
    try:
        yield
    finally:
        del modules[name]
