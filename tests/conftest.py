"""Puts this directory on the import path, for the modules in it; owns the profiles of Hypothesis.

`HYPOTHESIS_PROFILE=fuzz` tries 10,000 examples of each property instead of 100; `ci`, taken where
`CI` is set, tries the same examples every time.
"""

from __future__ import annotations

import os

from hypothesis import settings

# No deadline: on a shared core the time of one example says nothing.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("fuzz", deadline=None, max_examples=10_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))
