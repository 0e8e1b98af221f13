"""Owns the command `trio-collab`, and with it all that belongs to a whole process.

Exit codes: 0 fine, 1 could not do it, 2 wrong usage or settings.
"""

from __future__ import annotations

from collab.cli.command import main

__all__ = ["main"]
