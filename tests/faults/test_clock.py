"""The wall clock may jump: what the service expires, counts and limits goes by Trio's monotonic clock."""

from __future__ import annotations

import ast
import time
from datetime import datetime, timedelta

import pytest
import trio
from peers import PING, ask, frame
from test_docs import PACKAGE

import collab.core.membership
import collab.edge.acceptor
from collab.settings import LimitSettings, Settings
from collab.testing import open_service

HOUR_SECONDS = 3600
KEEPALIVE_SECONDS = 25 + 20 + 5
"""The interval, the time to answer, and some."""

# Every place that asks for the wall clock, and why it may. Nothing else in the package does.
WALL_CLOCK = {
    ("edge/acceptor.py", "_intake", "datetime.now"): "connected_at, shown in /api/users/online",
    ("edge/socketio.py", "connection_of", "datetime.now"): "the same of a Socket.IO client",
    ("edge/intake.py", "_milliseconds_since_epoch", "time.time_ns"): "the timestamp of a pong",
    (
        "policy/auth.py",
        "_claims",
        "time.time",
    ): "a token's end is a time of the wall clock, once, as it comes in",
    ("cli/token.py", "create", "time.time"): "the times in a token",
    ("observe/audit.py", "_time", "time.time_ns"): "the time of an audit line",
    ("observe/audit_writer.py", "_now", "time.time_ns"): "the time of a line about dropped ones",
    (
        "web/events.py",
        "_sender",
        "datetime.now",
    ): "what every connection has; of this one it is shown nowhere",
    ("core/membership.py", "_announce_shutdown_to", "datetime.now"): "the timestamp of service_shutdown",
}

TOOLS = {f"cli/{name}.py" for name in ("findings", "listen", "reaching", "taking_part")}
"""What plays a client from the command line, and shows times to a person."""

_READS_IT = {
    "time": {"time", "time_ns", "localtime", "gmtime", "ctime", "asctime", "strftime", "clock_gettime"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}
# They read the wall clock only when they are not told a time.
_TIME_ARGUMENTS = {"localtime": 1, "gmtime": 1, "ctime": 1, "asctime": 1, "strftime": 2}


@pytest.fixture
def move_wall_clock(monkeypatch):
    """Moves the wall clock, wherever the service asks for it, by so many seconds."""
    wall_seconds, wall_nanoseconds = time.time, time.time_ns

    def move(seconds):
        class MovedDatetime(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.now(tz) + timedelta(seconds=seconds)

        monkeypatch.setattr(time, "time", lambda: wall_seconds() + seconds)
        monkeypatch.setattr(time, "time_ns", lambda: wall_nanoseconds() + seconds * 10**9)
        monkeypatch.setattr(collab.edge.acceptor, "datetime", MovedDatetime)
        monkeypatch.setattr(collab.core.membership, "datetime", MovedDatetime)

    return move


async def keep_reading(backend, heard):
    while True:
        heard.append(await backend.receive())


@pytest.mark.trio
@pytest.mark.parametrize("seconds", [HOUR_SECONDS, -HOUR_SECONDS], ids=["forward", "back"])
async def test_an_hour_on_the_wall_clock_disconnects_nobody_and_presence_goes_on(
    autojump_clock, move_wall_clock, seconds
):
    async with open_service(in_memory=True, timeout_seconds=10_000) as local, trio.open_nursery() as nursery:
        idle = [await local.connect(f"idle-{number}") for number in range(20)]
        observer = await local.connect("observer", presence="all")
        heard, seen = [], []
        for backend in idle:
            nursery.start_soon(keep_reading, backend, heard)
        nursery.start_soon(keep_reading, observer, seen)
        users = local.online()
        for moved in (seconds, 0, -seconds):
            uptime = (await ask(local, "GET", "/health")).json["uptime"]
            move_wall_clock(moved)
            # At once, and over a whole keepalive: nobody is taken for silent, nobody for heard.
            await trio.sleep(1)
            assert local.online() == users
            await trio.sleep(KEEPALIVE_SECONDS - 1)
            assert local.online() == users
            after = (await ask(local, "GET", "/health")).json["uptime"]
            assert after - uptime == pytest.approx(KEEPALIVE_SECONDS, abs=1)
        assert heard == []
        assert seen == []

        newcomer = await local.connect("newcomer")
        await trio.sleep(1)
        assert [message["event"] for message in seen] == ["user_online"]
        await newcomer.send("ping")
        pong = await newcomer.receive("pong")
        # What is shown goes by the wall clock: so the clock did move.
        assert pong["data"]["timestamp"] / 1000 == pytest.approx(time.time(), abs=60)
        await newcomer.drop()
        await trio.sleep(1)
        assert [message["event"] for message in seen] == ["user_online", "user_offline"]
        nursery.cancel_scope.cancel()


@pytest.mark.trio
@pytest.mark.parametrize("seconds", [HOUR_SECONDS, -HOUR_SECONDS], ids=["forward", "back"])
async def test_a_peer_that_is_gone_is_found_out_in_its_time_whatever_the_wall_clock_does(
    autojump_clock, move_wall_clock, seconds
):
    async with open_service(in_memory=True) as local:
        await local.connect("ada")
        await trio.sleep(20)
        move_wall_clock(seconds)
        await trio.sleep(24)
        assert local.online() == {"ada"}
        await trio.sleep(KEEPALIVE_SECONDS - 44)
        assert local.online() == set()


@pytest.mark.trio
@pytest.mark.parametrize("seconds", [HOUR_SECONDS, -HOUR_SECONDS], ids=["forward", "back"])
async def test_a_limit_on_floods_is_neither_lifted_nor_tightened_by_the_wall_clock(
    autojump_clock, move_wall_clock, seconds
):
    async with open_service(Settings(limits=LimitSettings(errors=1)), in_memory=True) as local:
        ada = await local.connect("ada")
        for number in range(10):
            if number == 5:
                move_wall_clock(seconds)
            await ada.send("nonsense")
            assert (await ada.receive())["data"]["code"] == "unknown_event"
        await ada.stream.send_all(frame(PING))
        await ada.send("nonsense")
        assert (await ada.wait_closed()).code == 1008


@pytest.mark.trio
@pytest.mark.parametrize("seconds", [HOUR_SECONDS, -HOUR_SECONDS], ids=["forward", "back"])
async def test_a_shutdown_shows_the_wall_clock_and_takes_its_time_by_the_other(
    autojump_clock, move_wall_clock, seconds
):
    async with open_service(in_memory=True) as local, trio.open_nursery() as nursery:
        ada = await local.connect("ada")
        move_wall_clock(seconds)
        began = trio.current_time()
        nursery.start_soon(local.service.drain)
        notice = (await ada.receive("service_shutdown"))["data"]
        shown = datetime.fromisoformat(notice["timestamp"]).timestamp()
        assert shown == pytest.approx(time.time(), abs=60)
        assert (await ada.wait_closed()).code == 1001
        assert trio.current_time() - began < local.service.settings.server.drain


def wall_clock_calls(source):
    """Where a module asks for the wall clock: the function around it, and what it calls."""
    found = []

    def visit(node, function):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.Attribute):
            owner = (
                node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            )
            if node.attr in _READS_IT.get(owner, ()):
                found.append((function, f"{owner}.{node.attr}", node))
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found.extend(
                (function, f"time.{name.name}", node) for name in node.names if name.name in _READS_IT["time"]
            )
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    tree = ast.parse(source)
    visit(tree, "")
    told = {
        id(call.func)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and len(call.args) >= _TIME_ARGUMENTS.get(call.func.attr, 99)
    }
    return [(function, name) for function, name, node in found if id(node) not in told]


def test_only_timestamps_that_are_shown_ask_for_the_wall_clock():
    found = {
        (path.relative_to(PACKAGE).as_posix(), function, name)
        for path in PACKAGE.rglob("*.py")
        # The load generator, the client and its tools are not part of the service.
        if path.relative_to(PACKAGE).parts[0] not in ("bench", "client")
        and path.relative_to(PACKAGE).as_posix() not in TOOLS
        for function, name in wall_clock_calls(path.read_text())
    }
    assert found == set(WALL_CLOCK)


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.time()",
        "import time\nclock = time.time",
        "from time import time_ns",
        "import datetime\ndatetime.datetime.now()",
        "from datetime import datetime\ndatetime.utcnow()",
        "from datetime import date\ndate.today()",
        "import time\ntime.strftime('%H')",
        "import attrs, time\nattrs.field(factory=time.time)",
    ],
)
def test_no_way_to_the_wall_clock_is_overlooked(source):
    assert wall_clock_calls(source)


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.monotonic()",
        "import time\ntime.strftime('%H', time.gmtime(0))",
        "import trio\ntrio.current_time()",
        "from datetime import datetime\ndatetime.fromtimestamp(0)",
    ],
)
def test_a_clock_that_is_monotonic_or_a_time_that_is_told_is_allowed(source):
    assert not wall_clock_calls(source)
