"""trio-collab: routes events between collaborating Portfolio Planner backends.

The names are loaded at their first use, so that importing one part of the package does not
import the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from collab._version import __version__

if TYPE_CHECKING:
    from collab.errors import CollabError
    from collab.server import serve
    from collab.settings import Settings
else:
    from importlib import import_module

    _HOMES = {"CollabError": "collab.errors", "Settings": "collab.settings", "serve": "collab.server"}

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOMES})


__all__ = ["CollabError", "Settings", "__version__", "serve"]
