"""Logs: lines that cannot be forged, written off the hot path, and a budget for routed events."""

from collab.observe.events import EventLog
from collab.observe.log import Logger, configure, get_logger
from collab.observe.writer import LogWriter

__all__ = ["EventLog", "LogWriter", "Logger", "configure", "get_logger"]
