"""Owns what a backend keeps: positions, with whom they are shared, comments, and events to send.

Each function is one transaction. Those named `take_…` are for what comes from others: they may be called
with the same event again, and check who sent it.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from sqlite3 import Connection, Row

SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA foreign_keys = ON;

CREATE TABLE IF NOT EXISTS positions (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    share_url TEXT NOT NULL,
    title TEXT NOT NULL DEFAULT '',
    tags TEXT NOT NULL DEFAULT '[]',
    notes TEXT NOT NULL DEFAULT '',
    status TEXT NOT NULL DEFAULT 'open',
    -- Of others' positions: anything but NULL where they are to be fetched. A new number for each reason, so
    -- that a fetch that began before the newest one does not count.
    stale INTEGER
);
CREATE TABLE IF NOT EXISTS shares (
    position_id TEXT NOT NULL REFERENCES positions ON DELETE CASCADE,
    user_id TEXT NOT NULL,
    PRIMARY KEY (position_id, user_id)
);
CREATE TABLE IF NOT EXISTS comments (
    id TEXT PRIMARY KEY,
    position_id TEXT NOT NULL REFERENCES positions ON DELETE CASCADE,
    user_id TEXT NOT NULL,
    display_name TEXT NOT NULL,
    text TEXT NOT NULL,
    created_at TEXT NOT NULL
);
-- Events that the service has not acknowledged yet, one row for each receiver.
CREATE TABLE IF NOT EXISTS outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    to_user TEXT NOT NULL,
    type TEXT NOT NULL,
    position_id TEXT NOT NULL,
    data TEXT NOT NULL,
    refused TEXT
);
"""


class NotFound(Exception):
    """There is no such position, or it is not one's own."""


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """An event in the outbox."""

    number: int
    to_user: str
    type: str
    data: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Stale:
    """A position of somebody else that is to be fetched."""

    position_id: str
    owner: str
    share_url: str
    stale: int


# What the user does


def create_position(
    db: Connection, me: str, base_url: str, *, title: str, tags: Sequence[str], notes: str
) -> str:
    """Keep a new position of one's own; returns its id."""
    id = str(uuid.uuid4())
    db.execute(
        "INSERT INTO positions (id, owner, share_url, title, tags, notes) VALUES (?, ?, ?, ?, ?, ?)",
        (id, me, f"{base_url}/{id}", title, json.dumps(list(tags)), notes),
    )
    return id


def share(db: Connection, me: str, position_id: str, to_users: Iterable[str]) -> None:
    """Share a position of one's own."""
    url = _own(db, me, position_id)["share_url"]
    for user in to_users:
        db.execute("INSERT OR IGNORE INTO shares VALUES (?, ?)", (position_id, user))
        _tell_of_share(db, user, position_id, url)


def share_again(db: Connection, to_user: str | None = None) -> None:
    """Tell everybody, or this user, what is shared with them: something may not have reached them."""
    for row in db.execute(
        "SELECT position_id, user_id, share_url FROM shares JOIN positions ON id = position_id"
        " WHERE ?1 IS NULL OR user_id = ?1",
        (to_user,),
    ).fetchall():
        _tell_of_share(db, row["user_id"], row["position_id"], row["share_url"])


def revoke(db: Connection, me: str, position_id: str, user: str) -> None:
    """Share a position no longer."""
    _own(db, me, position_id)
    if db.execute("DELETE FROM shares WHERE (position_id, user_id) = (?, ?)", (position_id, user)).rowcount:
        db.execute("DELETE FROM outbox WHERE (position_id, to_user) = (?, ?)", (position_id, user))
        _tell(db, user, "share_revoked", position_id, {})


def update(db: Connection, me: str, position_id: str, updates: dict[str, Any]) -> None:
    """Change tags, notes or status of a position of one's own."""
    _own(db, me, position_id)
    _write_updates(db, position_id, updates)
    for user in _sharers(db, position_id):
        _tell(db, user, "position_updated", position_id, {"updates": updates})


def comment(
    db: Connection, me: str, display_name: str, position_id: str, text: str, id: str | None = None
) -> dict[str, Any]:
    """Comment on a position that one sees; with the id of a comment that is there, it is that one."""
    position = _position(db, position_id)
    id = id or str(uuid.uuid4())
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if _insert_comment(db, id, position_id, me, display_name, text, now):
        receivers = _sharers(db, position_id) if position["owner"] == me else [position["owner"]]
        for user in receivers:
            _tell_of_comment(db, user, id)
    return _comment(db, id)


# What others send


def take_shared(db: Connection, me: str, from_user: str, position_id: str, share_url: str) -> None:
    """A position was shared: it is to be fetched."""
    if from_user != me:
        db.execute(
            "INSERT INTO positions (id, owner, share_url, stale) VALUES (?, ?, ?, random())"
            " ON CONFLICT DO UPDATE SET share_url = excluded.share_url, stale = excluded.stale"
            " WHERE owner = excluded.owner",
            (position_id, from_user, share_url),
        )


def take_comment(db: Connection, me: str, from_user: str, position_id: str, comment: dict[str, Any]) -> bool:
    """A comment came. Whether it is a new one, of somebody who may comment here."""
    try:
        owner = _position(db, position_id)["owner"]
    except NotFound:
        return False
    if owner == me:
        allowed = from_user == comment["user_id"] and from_user in _sharers(db, position_id)
    else:
        # The owner's own comment, or one that the owner passes on.
        allowed = from_user == owner and comment["user_id"] != me
    if not allowed or not _insert_comment(db, position_id=position_id, **comment):
        return False
    if owner == me:
        for user in _sharers(db, position_id):
            if user != from_user:
                _tell_of_comment(db, user, comment["id"])
    return True


def take_update(db: Connection, me: str, from_user: str, position_id: str, updates: dict[str, Any]) -> None:
    """Somebody else's position changed."""
    if from_user != me and _is_owner(db, from_user, position_id):
        _write_updates(db, position_id, updates)
        # A fetch under way may bring what was before.
        db.execute("UPDATE positions SET stale = random() WHERE id = ? AND stale IS NOT NULL", (position_id,))


def take_revoked(db: Connection, me: str, from_user: str, position_id: str) -> None:
    """Somebody else's position is not shared any more: forget it, and what others said about it."""
    if from_user != me and _is_owner(db, from_user, position_id):
        _forget(db, position_id)


# Catching up


def mark_stale(db: Connection, me: str, owner: str | None = None) -> None:
    """What others share, or what this user shares, is to be fetched."""
    db.execute(
        "UPDATE positions SET stale = random() WHERE owner != ?1 AND (?2 IS NULL OR owner = ?2)", (me, owner)
    )


def stale(db: Connection) -> list[Stale]:
    """What is to be fetched."""
    rows = db.execute("SELECT id, owner, share_url, stale FROM positions WHERE stale IS NOT NULL")
    return [
        Stale(position_id=row["id"], owner=row["owner"], share_url=row["share_url"], stale=row["stale"])
        for row in rows
    ]


def take_fetched(db: Connection, me: str, fetched: Stale, state: dict[str, Any]) -> int:
    """Take what its owner has; returns how many comments were missing here.

    Comments of one's own that the owner has not are put into the outbox again.
    """
    if not _is_owner(db, fetched.owner, fetched.position_id):
        return 0
    _write_updates(
        db, fetched.position_id, {name: state[name] for name in ("title", "tags", "notes", "status")}
    )
    theirs = state["comments"]
    new = sum(_insert_comment(db, position_id=fetched.position_id, **comment) for comment in theirs)
    there = {comment["id"] for comment in theirs}
    for row in db.execute(
        "SELECT id FROM comments WHERE (position_id, user_id) = (?, ?) AND id NOT IN"
        " (SELECT json_extract(data, '$.comment.id') FROM outbox WHERE type = 'comment_added')",
        (fetched.position_id, me),
    ).fetchall():
        if row["id"] not in there:
            _tell_of_comment(db, fetched.owner, row["id"])
    db.execute(
        "UPDATE positions SET stale = NULL WHERE (id, stale) = (?, ?)", (fetched.position_id, fetched.stale)
    )
    return new


def take_refused(db: Connection, fetched: Stale) -> None:
    """Its owner does not show it any more."""
    if db.execute(
        "SELECT 1 FROM positions WHERE (id, stale) = (?, ?)", (fetched.position_id, fetched.stale)
    ).fetchone():
        _forget(db, fetched.position_id)


# The outbox


def next_to_send(db: Connection, online: Iterable[str]) -> Outgoing | None:
    """The oldest event for one of these users."""
    row = db.execute(
        "SELECT * FROM outbox WHERE refused IS NULL AND to_user IN (SELECT value FROM json_each(?))"
        " ORDER BY number LIMIT 1",
        (json.dumps(list(online)),),
    ).fetchone()
    return row and Outgoing(
        number=row["number"], to_user=row["to_user"], type=row["type"], data=json.loads(row["data"])
    )


def sent(db: Connection, number: int) -> None:
    """It was acknowledged."""
    db.execute("DELETE FROM outbox WHERE number = ?", (number,))


def refused(db: Connection, number: int, reason: str) -> None:
    """The service will never take it. It is kept for whoever looks for it."""
    db.execute("UPDATE outbox SET refused = ? WHERE number = ?", (reason, number))


# What is there


def seen_by(db: Connection, me: str, position_id: str, user: str) -> dict[str, Any]:
    """A position of one's own with its comments, for a user with whom it is shared."""
    row = _own(db, me, position_id)
    if user != me and user not in _sharers(db, position_id):
        raise NotFound
    return _shown(db, row)


def everything(db: Connection) -> dict[str, Any]:
    """All positions with their comments, and how many events wait."""
    waiting, given_up = db.execute("SELECT count(*) - count(refused), count(refused) FROM outbox").fetchone()
    rows = db.execute("SELECT * FROM positions ORDER BY rowid").fetchall()
    positions = [{**_shown(db, row), "shared_with": _sharers(db, row["id"])} for row in rows]
    return {"positions": positions, "waiting": waiting, "refused": given_up}


def _shown(db: Connection, row: Row) -> dict[str, Any]:
    comments = db.execute(
        "SELECT id, user_id, display_name, text, created_at FROM comments WHERE position_id = ?"
        " ORDER BY created_at, id",
        (row["id"],),
    )
    return {
        "id": row["id"],
        "owner": row["owner"],
        "title": row["title"],
        "tags": json.loads(row["tags"]),
        "notes": row["notes"],
        "status": row["status"],
        "comments": [dict(comment) for comment in comments],
    }


def _position(db: Connection, position_id: str) -> Row:
    row: Row | None = db.execute("SELECT * FROM positions WHERE id = ?", (position_id,)).fetchone()
    if row is None:
        raise NotFound
    return row


def _own(db: Connection, me: str, position_id: str) -> Row:
    row = _position(db, position_id)
    if row["owner"] != me:
        raise NotFound
    return row


def _is_owner(db: Connection, user: str, position_id: str) -> bool:
    try:
        return bool(_position(db, position_id)["owner"] == user)
    except NotFound:
        return False


def _sharers(db: Connection, position_id: str) -> list[str]:
    rows = db.execute("SELECT user_id FROM shares WHERE position_id = ? ORDER BY user_id", (position_id,))
    return [row["user_id"] for row in rows]


def _comment(db: Connection, id: str) -> dict[str, Any]:
    return dict(db.execute("SELECT * FROM comments WHERE id = ?", (id,)).fetchone())


def _insert_comment(
    db: Connection, id: str, position_id: str, user_id: str, display_name: str, text: str, created_at: str
) -> bool:
    values = (id, position_id, user_id, display_name, text, created_at)
    return db.execute("INSERT OR IGNORE INTO comments VALUES (?, ?, ?, ?, ?, ?)", values).rowcount == 1


def _write_updates(db: Connection, position_id: str, updates: dict[str, Any]) -> None:
    for name in ("title", "notes", "status"):
        if isinstance(updates.get(name), str):
            db.execute(f"UPDATE positions SET {name} = ? WHERE id = ?", (updates[name], position_id))
    tags = updates.get("tags")
    if isinstance(tags, list) and all(isinstance(tag, str) for tag in tags):
        db.execute("UPDATE positions SET tags = ? WHERE id = ?", (json.dumps(tags), position_id))


def _forget(db: Connection, position_id: str) -> None:
    db.execute("DELETE FROM positions WHERE id = ?", (position_id,))
    db.execute("DELETE FROM outbox WHERE position_id = ?", (position_id,))


def _tell_of_share(db: Connection, user: str, position_id: str, share_url: str) -> None:
    waiting = db.execute(
        "SELECT 1 FROM outbox WHERE (type, to_user, position_id) = ('position_shared', ?, ?)",
        (user, position_id),
    )
    if waiting.fetchone() is None:
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        _tell(db, user, "position_shared", position_id, {"share_url": share_url, "shared_at": now})


def _tell_of_comment(db: Connection, user: str, id: str) -> None:
    comment = _comment(db, id)
    data = {
        "id": id,
        "text": comment["text"],
        "user": {"id": comment["user_id"], "display_name": comment["display_name"]},
        "created_at": comment["created_at"],
    }
    _tell(db, user, "comment_added", comment["position_id"], {"comment": data})


def _tell(db: Connection, user: str, type: str, position_id: str, data: dict[str, Any]) -> None:
    db.execute(
        "INSERT INTO outbox (to_user, type, position_id, data) VALUES (?, ?, ?, ?)",
        (user, type, position_id, json.dumps({"position_id": position_id, **data})),
    )
