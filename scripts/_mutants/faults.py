"""Owns the planted faults: what each would do to a user, and the lines of the source that it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import attrs

ROOT: Final = Path(__file__).resolve().parents[2]

_ROUTER = "collab/core/router.py"
_MAILBOX = "collab/core/mailbox.py"
_REGISTRY = "collab/core/registry.py"
_PRESENCE = "collab/core/presence.py"
_RULES = "collab/policy/validation.py"


class Stale(Exception):
    """A fault does not fit the source any more: the text says which, and where."""


@attrs.frozen
class Edit:
    """Text that stands once in a file, and what stands there instead."""

    path: str
    old: str
    new: str


@attrs.frozen
class Fault:
    """One mistake that somebody could make."""

    name: str
    harm: str
    """What a user would suffer."""
    edits: tuple[Edit, ...]

    def apply(self, root: Path) -> None:
        """Plant it in the checkout at `root`.

        Raises:
            Stale: what it changes is not there exactly once; nothing was changed then.
        """
        changed = {root / edit.path: (root / edit.path).read_text() for edit in self.edits}
        for edit in self.edits:
            path = root / edit.path
            found = changed[path].count(edit.old)
            if found != 1:
                raise Stale(f"{self.name}: {edit.path} has {found} times, not once: {edit.old.strip()}")
            changed[path] = changed[path].replace(edit.old, edit.new)
        for path, text in changed.items():
            path.write_text(text)


FAULTS: Final = (
    Fault(
        "drop",
        "The last of several frames for one connection is lost, and its sender is told that it arrived.",
        (Edit(_MAILBOX, 'data += b"".join(self._fresh)', 'data += b"".join(self._fresh[:-1])'),),
    ),
    Fault(
        "drop-waiting",
        "An event that waited for room is acknowledged as delivered and never sent.",
        (Edit(_MAILBOX, "self._enter(waiting.frame)", "pass"),),
    ),
    Fault(
        "duplicate",
        "Who is named twice in one event gets it twice.",
        (Edit(_ROUTER, "for user_id in distinct:", "for user_id in to_users:"),),
    ),
    Fault(
        "duplicate-remainder",
        "A socket that took half of a write gets that half again: a backend reads garbage.",
        (Edit(_MAILBOX, '            data = b""\n', ""),),
    ),
    Fault(
        "reorder",
        "A small event overtakes a large one that waits for room: an old update replaces a newer one.",
        (Edit(_MAILBOX, "if self.closed or self._waiting:", "if self.closed:"),),
    ),
    Fault(
        "early-ack",
        "An event is acknowledged as delivered while it still waits for room, whatever becomes of it.",
        (Edit(_ROUTER, "self.undecided += not took", "self.undecided += 0"),),
    ),
    Fault(
        "ack-order",
        "An ack overtakes that of an earlier event: who counts acks takes the wrong event for delivered.",
        (
            Edit(
                _ROUTER,
                "if routing is None and not sender.unacknowledged:",
                "if routing is None:",
            ),
        ),
    ),
    Fault(
        "wrong-count",
        "The ack counts a recipient named twice as two who were reached.",
        (
            Edit(
                _ROUTER,
                "ack_frame(event.type, len(distinct), undelivered, request.reply_id)",
                "ack_frame(event.type, len(to_users), undelivered, request.reply_id)",
            ),
        ),
    ),
    Fault(
        "false-delivery",
        "Events that waited for somebody who was then sent away are acknowledged as delivered.",
        (Edit(_MAILBOX, "waiting.settled(False)", "waiting.settled(True)"),),
    ),
    Fault(
        "wrong-user",
        "What is meant for Ada goes to ada.",
        (
            Edit(
                _ROUTER,
                "in self._registry.of_user(user_id):",
                "in self._registry.of_user(user_id.casefold()):",
            ),
        ),
    ),
    Fault(
        "forged-sender",
        "A backend can speak as another one's user.",
        (
            Edit(
                _ROUTER,
                "dialect.event_frame(event, sender.user_id)",
                "dialect.event_frame(event, event.from_user or sender.user_id)",
            ),
            Edit(
                _RULES,
                "if event.from_user is not UNSET and event.from_user != user_id:",
                "if event.from_user is not UNSET and not event.from_user:",
            ),
        ),
    ),
    Fault(
        "lost-eviction",
        "A backend that reads nothing stays, and the acks of all who send to it wait for ever.",
        (
            Edit(
                _ROUTER,
                "if mailbox.overrun or mailbox.waiting_since <= longest_since:",
                "if mailbox.overrun:",
            ),
        ),
    ),
    Fault(
        "one-chance-to-evict",
        "A slow backend is looked at once and then forgotten, while it still keeps others waiting.",
        (
            Edit(
                _ROUTER,
                "if mailbox.closed or not mailbox.has_waiting:",
                "if mailbox is not None:",
            ),
        ),
    ),
    Fault(
        "stale-end",
        "The end of an old connection takes its user offline, who has a new one already.",
        (
            Edit(
                _REGISTRY,
                "tuple(other for other in of_user if other is not connection)",
                "()",
            ),
        ),
    ),
    Fault(
        "unbounded",
        "One backend that reads nothing can fill the memory of the service with large events.",
        (Edit(_MAILBOX, "or size > self._max_bytes)", "or size < 0)"),),
    ),
    Fault(
        "told-of-oneself",
        "A backend is told that its own user came online.",
        (Edit(_PRESENCE, "self._told + len(self._notices)", "self._told"),),
    ),
    Fault(
        "lost-offline",
        "Of two users who leave at the same moment one is shown as online for ever.",
        (
            Edit(
                _PRESENCE,
                "if last and not self._status.draining:",
                "if last and not self._status.draining and not self._notices:",
            ),
        ),
    ),
)
