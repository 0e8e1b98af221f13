"""Owns the header fields that every HTTP response has, whoever makes it."""

from __future__ import annotations

from typing import Final

NO_CONTENT_POLICY: Final = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""The Content-Security-Policy of what is no page, and the base of that of a page."""

SECURITY_HEADERS: Final = (
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-store"),
    # Pages that CORS lets in are not touched by it: it is about requests without CORS (Fetch standard).
    ("cross-origin-resource-policy", "same-origin"),
    ("content-security-policy", NO_CONTENT_POLICY),
)
