"""Owns the load generator behind `trio-collab bench`: one process, plain sockets, one epoll loop.

It shares no code with the service that it measures and checks: a fault in both would go unseen.
"""

from __future__ import annotations

from collab.bench.connection import Unreachable
from collab.bench.options import MAX_CONNECTIONS, MAX_SECONDS, Options
from collab.bench.report import Report
from collab.bench.run import run_bench

__all__ = ["MAX_CONNECTIONS", "MAX_SECONDS", "Options", "Report", "Unreachable", "run_bench"]
