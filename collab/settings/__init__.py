"""Owns the settings: what can be set, its defaults, and how values are loaded and checked."""

from __future__ import annotations

from collab.settings.groups import (
    AdminSettings,
    AuditSettings,
    AuthMode,
    AuthSettings,
    ClientAuth,
    EventSettings,
    EventValidation,
    HttpSettings,
    LimitSettings,
    LogFormat,
    LogLevel,
    LogSettings,
    OnFull,
    OriginSettings,
    PolicySettings,
    SendMode,
    ServerSettings,
    Settings,
    TimeoutSettings,
    TlsSettings,
)
from collab.settings.loading import Loaded, load_settings, read_settings
from collab.settings.options import Option, options_of
from collab.settings.units import Duration, Size
from collab.settings.warnings import unsafe_combinations

__all__ = [
    "AdminSettings",
    "AuditSettings",
    "AuthMode",
    "AuthSettings",
    "ClientAuth",
    "Duration",
    "EventSettings",
    "EventValidation",
    "HttpSettings",
    "LimitSettings",
    "Loaded",
    "LogFormat",
    "LogLevel",
    "LogSettings",
    "OnFull",
    "Option",
    "OriginSettings",
    "PolicySettings",
    "SendMode",
    "ServerSettings",
    "Settings",
    "Size",
    "TimeoutSettings",
    "TlsSettings",
    "load_settings",
    "options_of",
    "read_settings",
    "unsafe_combinations",
]
