"""Owns the last steps of `trio-collab doctor`: from the upgrade to an event that comes back."""

from __future__ import annotations

import secrets
import statistics
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import trio

from collab.cli.asking import Answer, ask, path_of_user
from collab.cli.far import Far, Unreachable
from collab.cli.findings import (
    ITS_LOG,
    PROXY_ADVICE,
    Failed,
    Found,
    claims_of,
    is_about_us,
    not_let_in,
    other_program,
    refused_event,
    refused_upgrade,
    skipped,
    user_of,
    warning,
)
from collab.cli.screen import duration, is_number, listed
from collab.cli.speaking import Refusal, Speaker, Trouble
from collab.errors import CollabError

if TYPE_CHECKING:
    _Tls = trio.SSLStream[trio.SocketStream]

_PINGS = 3
_CLOCK_SECONDS = 5.0


class TakingPart:
    """A visit as a user. Each step raises `Failed` where the next ones would be pointless.

    Owns the connection, which `close` ends.
    """

    def __init__(
        self, far: Far, seconds: float, *, user_id: str, origin: str, peers: tuple[str, ...]
    ) -> None:
        self._far = far
        self._seconds = seconds
        self._user_id = user_id
        self._origin = origin
        self._peers = peers
        self._token = ""
        self._row: dict[str, Any] = {}
        self._speaker: Speaker | None = None
        self._refusal: Answer | None = None

    async def close(self) -> None:
        """End the connection in good order, if there is one."""
        if self._speaker is not None:
            await self._speaker.close()

    async def upgrade(self) -> Found:
        """WebSockets come through."""
        far = self._far
        self._token = far.token()
        self._user_id = self._user_id or user_of(self._token) or f"doctor-{secrets.token_hex(4)}"
        await self._look_up()
        query = {
            "user_id": self._user_id,
            # The newest connection is what others are told of a user: they are told nothing new.
            "backend_url": str(self._row.get("backend_url") or "http://localhost"),
            "display_name": str(self._row.get("display_name") or "trio-collab doctor"),
            "presence": "none",
        }
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        if self._origin:
            headers["Origin"] = self._origin
        try:
            self._speaker = await Speaker.connect(
                far, f"{far.path or '/'}?{urlencode(query)}", headers, seconds=self._seconds
            )
        except Refusal as refusal:
            if is_about_us(refusal.answer):
                self._refusal = refusal.answer
            return refused_upgrade(refusal.answer, far.path or "/", far.port)
        except Trouble as trouble:
            raise Failed(
                str(trouble),
                "HTTP works and WebSocket does not: a proxy or a firewall on the way cuts it. "
                + PROXY_ADVICE,
            ) from None
        except trio.TooSlowError:
            raise Failed(f"no answer to it within {self._seconds:g} s", PROXY_ADVICE) from None
        return Found("the connection is a WebSocket")

    async def _look_up(self) -> None:
        try:
            answer = await ask(self._far, "GET", path_of_user(self._user_id), seconds=self._seconds)
        except CollabError:
            return
        row = answer.object() or {}
        self._row = row if row.get("status") == "online" else {}

    async def auth(self, *, is_local: bool) -> Found:
        """The token is taken, or none is asked for."""
        if self._refusal is not None:
            raise not_let_in(self._refusal, self._token, self._origin)
        assert self._speaker is not None
        try:
            with trio.fail_after(self._seconds):
                greeting = await self._speaker.receive()
        except Trouble as trouble:
            raise Failed(f"the connection ends at once: {trouble}", ITS_LOG) from None
        except trio.TooSlowError:
            raise Failed(
                "the WebSocket opens, and nothing comes",
                "a proxy on the way keeps what is sent: turn its buffering off. Else it is another service",
            ) from None
        data = greeting.get("data")
        if greeting.get("event") != "connected" or not isinstance(data, dict):
            raise Failed("the first message is not that of trio-collab", other_program(self._far.port))
        self._user_id = str(data.get("user_id", self._user_id))
        if self._token:
            return self._token_found()
        if is_local:
            return Found("no token is asked for: on this machine anybody can be anybody")
        return warning(
            "no token is asked for: whoever reaches the service can connect as anybody",
            "set auth.mode, unless only friends can reach it (docs/security.md)",
        )

    def _token_found(self) -> Found:
        ends = claims_of(self._token).get("exp")
        finding = f"let in as {self._user_id}"
        if is_number(ends):
            left = ends - time.time()
            if left < 60:
                return warning(
                    f"{finding}; the token ends in {duration(max(left, 0))}",
                    "connections end with their tokens (4001): a client has to send a new one with `refresh`",
                )
            return Found(f"{finding}; the token is good for {duration(left)}")
        return Found(finding)

    async def ping(self) -> Found:
        """How long an answer takes, and whether the clocks agree."""
        speaker = self._speaking()
        times: list[float] = []
        ahead = 0.0
        for number in range(_PINGS):
            began = time.perf_counter()
            await speaker.send({"event": "ping", "id": number})
            pong = await self._reply(speaker, "pong", number)
            times.append(time.perf_counter() - began)
            stamp = (pong.get("data") or {}).get("timestamp")
            if is_number(stamp):
                ahead = time.time() - times[-1] / 2 - stamp / 1000
        finding = f"an answer takes {statistics.median(times) * 1000:.1f} ms"
        if abs(ahead) > _CLOCK_SECONDS:
            side = "ahead of" if ahead > 0 else "behind"
            return warning(
                f"{finding}; this machine's clock is {duration(abs(ahead))} {side} the service's",
                "set the clocks: tokens are judged by the service's",
            )
        return Found(finding)

    async def send(self) -> Found:
        """An event to oneself is acknowledged, and comes back."""
        if self._row:
            return skipped(f"{self._user_id} is online already, and that backend would get the event, too")
        speaker = self._speaking()
        position = f"doctor-{secrets.token_hex(8)}"
        # Of a type that every validation lets pass, about a position that nobody has.
        event = {"type": "share_revoked", "to_users": [self._user_id], "data": {"position_id": position}}
        await speaker.send({"event": "collab_event", "id": "doctor", "data": event})
        ack: dict[str, Any] | None = None
        came = False
        while ack is None or not came:
            try:
                message = await self._next(speaker)
            except trio.TooSlowError:
                missing = "the event did not come back" if ack else "there is no ack"
                raise Failed(
                    f"an event to oneself was sent, and {missing}",
                    "look at the service's log: is it overloaded?",
                ) from None
            data = message.get("data")
            if not isinstance(data, dict):
                continue
            if message.get("event") == "collab_event":
                came = came or data.get("data") == {"position_id": position}
            elif message.get("id") == "doctor" and message.get("event") == "error":
                return refused_event(data)
            elif message.get("id") == "doctor":
                ack = data
                if data.get("delivered_to") != 1:
                    raise Failed(
                        "the service did not deliver an event to its own sender", "look at the service's log"
                    )
        return Found("an event to oneself was acknowledged, and came back")

    async def online_peers(self) -> Found:
        """Those who were named are online."""
        if not self._peers:
            return skipped("nobody was named with --peer")
        try:
            answer = await ask(self._far, "GET", "/api/users/online", seconds=self._seconds)
        except Unreachable as error:
            raise Failed(str(error), "") from None
        rows = (answer.object() or {}).get("users")
        if answer.status != 200 or not isinstance(rows, list):
            raise Failed(f"who is online is not told: {answer.status} {answer.sentence}", "")
        online = {str(row.get("user_id")) for row in rows if isinstance(row, dict)}
        missing = [peer for peer in self._peers if peer not in online]
        if not missing:
            verb = "is" if len(self._peers) == 1 else "are"
            return Found(f"{listed(list(self._peers))} {verb} online")
        near = sorted(user for user in online if user.casefold() in {peer.casefold() for peer in missing})
        advice = "is that backend running, with the same COLLAB_URL? "
        if self._token:
            advice += "With policy.send, one sees those alone to whom one may send. "
        if near:
            advice = f"ids are compared letter by letter: {listed(near)} is online"
        verb = "is" if len(missing) == 1 else "are"
        raise Failed(f"{listed(missing)} {verb} not online: events do not reach them", advice.strip())

    def _speaking(self) -> Speaker:
        assert self._speaker is not None
        return self._speaker

    async def _reply(self, speaker: Speaker, event: str, id: object) -> dict[str, Any]:
        try:
            while True:
                message = await self._next(speaker)
                if message.get("event") == event and message.get("id") == id:
                    return message
        except trio.TooSlowError:
            raise Failed(
                f"no answer to a ping within {self._seconds:g} s",
                "a proxy on the way may keep small messages: turn its buffering off",
            ) from None

    async def _next(self, speaker: Speaker) -> dict[str, Any]:
        try:
            with trio.fail_after(self._seconds):
                return await speaker.receive()
        except Trouble as trouble:
            raise Failed(str(trouble), ITS_LOG) from None
