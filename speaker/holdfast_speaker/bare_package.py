# SPDX-License-Identifier: Apache-2.0
"""Import modules of a package without running the package's own ``__init__``."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType


@contextmanager
def bare_package(name: str) -> Iterator[None]:
    """Within, submodules of ``name`` import by themselves. Afterwards the package imports as ever.

    Nothing is done where it has been imported before. ModuleNotFoundError where it is not installed.
    """
    if name in sys.modules:
        yield
        return
    spec = find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    bare = ModuleType(name)
    bare.__path__ = list(spec.submodule_search_locations)
    bare.__spec__ = spec
    sys.modules[name] = bare
    try:
        yield
    finally:
        del sys.modules[name]
