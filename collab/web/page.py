"""Owns the page at `/`: what this is, and where to go from here."""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from quart import Response

from collab.wire.headers import NO_CONTENT_POLICY

_STYLE: Final = """
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 3rem auto; padding: 0 1rem; }
  code { background: #eee; padding: 0.1em 0.3em; border-radius: 3px; }
  @media (prefers-color-scheme: dark) {
    body { background: #111; color: #ddd; } code { background: #333; } a { color: #8bf; }
  }
"""
_PAGE: Final = f"""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>trio-collab</title>
<style>{_STYLE}</style>
<h1>trio-collab</h1>
<p>An event router for collaborating Portfolio Planner backends. It knows who is online, carries
events from one backend to those it names, acknowledges each, and stores nothing.</p>
<p>A backend connects with a WebSocket to this same address:</p>
<p><code>/?user_id=&lt;id&gt;&amp;backend_url=&lt;url&gt;&amp;display_name=&lt;name&gt;</code></p>
<ul>
  <li><a href="/health">/health</a>: alive, and the counters</li>
  <li><a href="/ready">/ready</a>: whether new connections are taken</li>
  <li><a href="/api/users/online">/api/users/online</a>: who is online</li>
  <li><code>GET /api/users/&lt;user_id&gt;</code>: one user, 404 when offline</li>
  <li><code>POST /api/register</code>: how to connect</li>
  <li><code>POST /api/events</code>: one event without a connection</li>
</ul>
</html>
"""
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_CONTENT_POLICY: Final = f"{NO_CONTENT_POLICY}; style-src 'sha256-{_STYLE_HASH}'"


async def index() -> Response:
    """`GET /` without an upgrade."""
    return Response(
        _PAGE, content_type="text/html; charset=utf-8", headers={"content-security-policy": _CONTENT_POLICY}
    )
