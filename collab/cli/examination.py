"""Owns the steps of `trio-collab doctor`: their order, and the end behind the first that fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from collab.cli.findings import NOT_TRIED, Failed, Found, Step
from collab.cli.reaching import Reaching
from collab.cli.taking_part import TakingPart
from collab.errors import CollabError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from collab.cli.far import Far


class Examination:
    """One look at a service, step by step. `report` is called with each step once it is done."""

    def __init__(
        self,
        far: Far,
        report: Callable[[Step], None],
        *,
        user_id: str = "",
        origin: str = "",
        peers: tuple[str, ...] = (),
        seconds: float = 5.0,
    ) -> None:
        self._far = far
        self._report = report
        self._seconds = seconds
        self._reaching = Reaching(far, seconds)
        self._taking_part = TakingPart(far, seconds, user_id=user_id, origin=origin, peers=peers)

    async def run(self) -> bool:
        """Take the steps, up to the first that fails. Whether none did. Raises nothing."""
        reaching, taking_part = self._reaching, self._taking_part
        steps: tuple[tuple[str, Callable[[], Awaitable[Found]]], ...] = (
            ("name", reaching.name),
            ("tcp", reaching.tcp),
            ("tls", reaching.tls),
            ("http", reaching.http),
            ("upgrade", taking_part.upgrade),
            ("auth", lambda: taking_part.auth(is_local=reaching.is_local)),
            ("ping", taking_part.ping),
            ("send", taking_part.send),
            ("peers", taking_part.online_peers),
        )
        is_well = True
        try:
            for name, step in steps:
                if not is_well:
                    self._report(Step(name=name, status=NOT_TRIED, finding=""))
                    continue
                is_well = await self._take(name, step)
        finally:
            await taking_part.close()
        return is_well

    async def _take(self, name: str, step: Callable[[], Awaitable[Found]]) -> bool:
        began = trio.current_time()
        try:
            # Each has deadlines of its own; this is the last one.
            with trio.fail_after(4 * self._seconds):
                found = await step()
        except Failed as failed:
            found = Found(failed.finding, failed.advice, "failed")
        except trio.TooSlowError:
            found = Found(
                f"no answer within {self._seconds:g} s",
                "something on the way keeps it: a firewall, a proxy",
                "failed",
            )
        except CollabError as error:
            found = Found(str(error), "", "failed")
        except Exception as error:
            # The boundary: whatever is there, a doctor goes on.
            found = Found(f"unforeseen: {type(error).__name__}: {error}", "please report this", "failed")
        self._report(
            Step(
                name=name,
                status=found.status,
                finding=self._far.hide(found.finding),
                advice=self._far.hide(found.advice),
                seconds=round(trio.current_time() - began, 4),
            )
        )
        return found.status != "failed"
