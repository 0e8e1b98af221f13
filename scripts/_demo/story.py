"""Owns the conversation: what Ada and Bob do in their browsers, and what they must see then."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import httpx
import trio
from stage import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from stage import Stage

_POSITIONS = "/api/v1/positions/ideas"
_PATIENCE_SECONDS = 15.0


class User:
    """Somebody at the page of their backend."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.url = url
        self._http = httpx.AsyncClient(base_url=url, timeout=_PATIENCE_SECONDS, trust_env=False)

    async def create_position(self) -> str:
        """Write down an idea; returns its id."""
        idea = {
            "title": "NVDA: breakout above the range",
            "tags": ["momentum", "semiconductors"],
            "notes": "Long above 140, stop at 132. Half the usual size until earnings.",
        }
        created = await self._ask("POST", _POSITIONS, idea)
        return str(created["id"])

    async def share(self, position: str, user: str) -> None:
        """Share it with another user."""
        await self._ask("POST", f"{_POSITIONS}/{position}/share", {"to_users": [user]})

    async def comment(self, position: str, text: str) -> None:
        """Comment on it."""
        await self._ask("POST", f"{_POSITIONS}/{position}/comments", {"text": text})

    async def update(self, position: str, **updates: object) -> None:
        """Change it."""
        await self._ask("PATCH", f"{_POSITIONS}/{position}", updates)

    async def revoke(self, position: str, user: str) -> None:
        """Share it no longer with this user."""
        await self._ask("DELETE", f"{_POSITIONS}/{position}/share/{user}")

    async def sees(self, what: str, is_there: Callable[[dict[str, Any]], bool]) -> None:
        """Wait until the page shows it.

        Raises:
            Problem: it never does.
        """
        with trio.move_on_after(_PATIENCE_SECONDS):
            while not is_there(await self._ask("GET", "/api/state")):  # noqa: ASYNC110 - another process changes it
                await trio.sleep(0.05)
            return
        raise Problem(f"{self.name} does not see {what}")

    async def sees_comments(self, position: str, *texts: str) -> None:
        """Wait until the page shows these comments, each once, and nothing is left to send."""

        def are_there(state: dict[str, Any]) -> bool:
            comments = [comment["text"] for comment in _shown(state, position).get("comments", ())]
            return comments == list(texts) and not state["waiting"]

        await self.sees(f"the comments {texts}", are_there)

    async def _ask(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
        try:
            answer = await self._http.request(method, path, json=body)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise Problem(f"{self.name}: {method} {path}: {error or type(error).__name__}") from error
        return answer.json() if answer.content else None


async def begin(stage: Stage) -> tuple[User, User]:
    """Have the service and both backends run, and see each other."""
    stage.view.step("The service starts, then the backends of Ada and Bob")
    await stage.start_service()
    users: list[User] = []

    async def start(name: str) -> None:
        users.append(User(name, await stage.start_backend(name)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start, "ada")
        nursery.start_soon(start, "bob")
    ada, bob = sorted(users, key=lambda user: user.name)
    await _see_each_other(ada, bob)
    return ada, bob


async def tell(stage: Stage, ada: User, bob: User) -> None:
    """The conversation.

    Raises:
        Problem: somebody does not see what they should.
    """
    view = stage.view
    await stage.pause()

    view.step("Ada shares a position; Bob's backend fetches it from hers")
    position = await ada.create_position()
    await ada.share(position, "bob")
    await bob.sees("the position", lambda state: bool(_shown(state, position).get("notes")))
    await stage.pause()

    view.step("They comment")
    await bob.comment(position, "Great setup!")
    await ada.sees_comments(position, "Great setup!")
    await ada.comment(position, "Thanks. Watching the volume.")
    await bob.sees_comments(position, "Great setup!", "Thanks. Watching the volume.")
    await stage.pause()

    view.step("Ada changes tags and notes")
    await ada.update(position, tags=["bullish", "momentum"], notes="Updated analysis")
    await bob.sees("the update", lambda state: _shown(state, position).get("notes") == "Updated analysis")
    await stage.pause()

    view.step("The service is killed. Both go on commenting")
    await stage.end("service", signal.SIGKILL)
    await bob.comment(position, "Are you there?")
    await ada.comment(position, "I am. The service is not.")
    await stage.pause()

    view.step("The service starts again: nothing is lost, nothing comes twice")
    await stage.start_service()
    said = ("Great setup!", "Thanks. Watching the volume.", "Are you there?", "I am. The service is not.")
    for user in (ada, bob):
        await user.sees_comments(position, *said)
    await _see_each_other(ada, bob)
    await stage.pause()

    view.step("Ada revokes the share")
    await ada.revoke(position, "bob")
    await bob.sees("that it is revoked", lambda state: not state["positions"])
    await stage.pause()


async def _see_each_other(ada: User, bob: User) -> None:
    for user in (ada, bob):
        await user.sees(
            "the others",
            lambda state: (
                state["collab"]["state"] == "connected" and set(state["collab"]["online"]) == {"ada", "bob"}
            ),
        )


def _shown(state: dict[str, Any], position: str) -> dict[str, Any]:
    return next((shown for shown in state["positions"] if shown["id"] == position), {})
