"""Runs the backend by uvicorn; see the package. PORT=0 takes a free port."""

from __future__ import annotations

import logging
import os
import socket
import sys
from dataclasses import replace

import uvicorn

from demo_backend.app import create_app
from demo_backend.settings import Settings


class _Server(uvicorn.Server):
    """Says where it listens, once it does."""

    def __init__(self, config: uvicorn.Config, url: str) -> None:
        super().__init__(config)
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(f"Listening {self._url}", flush=True)


class _Printable(logging.Formatter):
    """Lines of the log hold what other users wrote: that must not command a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return "".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in text)


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    lines = logging.StreamHandler(sys.stdout)
    lines.setFormatter(_Printable())
    logging.basicConfig(level=logging.WARNING, handlers=[lines])
    logging.getLogger("demo_backend").setLevel(logging.INFO)
    settings = Settings.from_environment()
    with socket.create_server(("127.0.0.1", int(os.environ.get("PORT", "8000")))) as listening:
        url = f"http://localhost:{listening.getsockname()[1]}"
        settings = replace(settings, backend_url=os.environ.get("BACKEND_URL", url))
        config = uvicorn.Config(create_app(settings), ws="none", log_config=None, access_log=False)
        _Server(config, url).run([listening])


if __name__ == "__main__":
    main()
