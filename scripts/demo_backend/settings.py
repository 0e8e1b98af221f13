"""Owns the settings, from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Who this backend speaks for, and where everything is."""

    user_id: str
    display_name: str
    backend_url: str
    """Where other backends reach this one, without a slash at its end."""
    collab_url: str
    database: str

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """As the environment says.

        Raises:
            KeyError: there is no USER_ID.
        """
        user_id = environ["USER_ID"]
        return cls(
            user_id=user_id,
            display_name=environ.get("DISPLAY_NAME", user_id.capitalize()),
            backend_url=environ.get("BACKEND_URL", f"http://localhost:{environ.get('PORT', '8000')}").rstrip(
                "/"
            ),
            collab_url=environ.get("COLLAB_URL", "ws://localhost:9000"),
            database=environ.get("DATABASE", f"{user_id}.sqlite"),
        )
