"""Owns the settings: what can be set, its defaults, and how values are loaded and checked."""

from __future__ import annotations

from collab.settings.groups import (
    AuditSettings,
    AuthMode,
    AuthSettings,
    HttpSettings,
    LimitSettings,
    LogFormat,
    LogLevel,
    LogSettings,
    OnFull,
    OriginSettings,
    ServerSettings,
    Settings,
    TimeoutSettings,
)
from collab.settings.loading import Loaded, load_settings, read_settings
from collab.settings.options import Option, options_of
from collab.settings.units import Duration, Size

__all__ = [
    "AuditSettings",
    "AuthMode",
    "AuthSettings",
    "Duration",
    "HttpSettings",
    "LimitSettings",
    "Loaded",
    "LogFormat",
    "LogLevel",
    "LogSettings",
    "OnFull",
    "Option",
    "OriginSettings",
    "ServerSettings",
    "Settings",
    "Size",
    "TimeoutSettings",
    "load_settings",
    "options_of",
    "read_settings",
]
