"""How often a test tries: few times in the usual run, in full with `scripts/test --all`."""

from __future__ import annotations

import os

IS_FULL_RUN = os.environ.get("TRIO_COLLAB_TESTS") == "full"


def count(usual: int, full: int) -> int:
    """The number of tries for this run."""
    return full if IS_FULL_RUN else usual
