"""The listening sockets: every address of a host, one port number."""

from __future__ import annotations

import errno
import socket

import pytest
import trio

from collab.edge.listen import PatientListener, local_addresses, open_listeners
from collab.errors import CannotStart


async def close_all(listeners):
    for listener in listeners:
        await listener.aclose()


@pytest.mark.trio
async def test_port_0_is_one_free_number_for_both_families():
    for _ in range(20):
        listeners = await open_listeners("localhost", 0)
        addresses = local_addresses(listeners)
        assert [host for host, _ in addresses] == ["127.0.0.1", "::1"]
        assert len({port for _, port in addresses}) == 1
        assert addresses[0][1] > 0
        await close_all(listeners)


@pytest.mark.trio
async def test_every_address_of_the_machine_is_listened_on_by_an_empty_host_name():
    listeners = await open_listeners("", 0)
    port = local_addresses(listeners)[0][1]
    for host in ("127.0.0.1", "::1"):
        async with await trio.open_tcp_stream(host, port):
            pass
    await close_all(listeners)


@pytest.mark.trio
async def test_a_port_taken_in_one_family_alone_is_in_use():
    with socket.socket(socket.AF_INET6) as taken:
        taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken.bind(("::1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CannotStart, match=f"localhost:{port}: the port is in use"):
            await open_listeners("localhost", port)
        with socket.socket() as free:
            free.bind(("127.0.0.1", port))


@pytest.mark.trio
async def test_an_address_of_another_machine_cannot_be_listened_on():
    with pytest.raises(CannotStart, match=r"cannot listen on 192\.0\.2\.1:0: "):
        await open_listeners("192.0.2.1", 0)


@pytest.mark.trio
@pytest.mark.parametrize("host", ["no such host", "a" * 300, "x..y"])
async def test_a_name_that_is_none_is_one_clear_line(host):
    with pytest.raises(CannotStart, match=r"^cannot listen on .+: .+$"):
        await open_listeners(host, 0)


class ScarceListener:
    """Has no descriptor for some calls, then fails in another way."""

    def __init__(self, times):
        self.left = times

    async def accept(self):
        await trio.lowlevel.checkpoint()
        self.left -= 1
        raise OSError(errno.EMFILE if self.left >= 0 else errno.EBADF, "Too many open files")


@pytest.mark.trio
async def test_without_a_descriptor_it_waits_and_says_so_every_ten_seconds(autojump_clock, caplog):
    with pytest.raises(OSError, match="Too many") as failed:
        await PatientListener(ScarceListener(150)).accept()
    assert failed.value.errno == errno.EBADF
    assert trio.current_time() == pytest.approx(15)
    told = [record for record in caplog.records if "Connections have to wait" in record.getMessage()]
    assert [record.levelname for record in told] == ["WARNING"] * 2
    assert all(record.exc_info is None for record in told)
