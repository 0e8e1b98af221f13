"""TLS on the one port: who is let in with which certificate, what is spoken, how certificates are renewed."""

from __future__ import annotations

import gc
import json
import logging
import os
import socket
import ssl
import warnings
import weakref
from contextlib import asynccontextmanager, suppress

import attrs
import pytest
import trio
import trustme
from baseline import Holdings, exchange, serves_a_healthy_pair, settles_at
from certificates import Certificates
from counts import count
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from invariants import check_i7_baseline
from peers import (
    ADA,
    BINARY,
    CLOSE,
    PATIENCE_SECONDS,
    UPGRADE,
    ask,
    event_text,
    frame,
    head,
    read_answer,
    read_to_end,
    send_fin,
    small_receiver,
)
from tls_records import ALERT, CLOSE_NOTIFY, DATA, Records, logs_keys

from collab.core.mailbox import Mailbox
from collab.core.outbox import Outbox
from collab.edge.stops import FloodMeter, Stops
from collab.edge.tap import Tap
from collab.edge.tls import Tls, TlsStream
from collab.errors import SettingsError
from collab.policy.rate import Rate
from collab.server import serve
from collab.settings import (
    Duration,
    LimitSettings,
    ServerSettings,
    Settings,
    TimeoutSettings,
    TlsSettings,
)
from collab.testing import FakeBackend, open_service
from collab.wire.close import Close, CloseCode
from collab.wire.frames import close_frame, text_frame

BRISK = Settings(timeouts=TimeoutSettings(handshake=Duration("500ms"), close=Duration("500ms")))


@pytest.fixture
def renewed(tmp_path):
    """Certificates of a test that changes them."""
    return Certificates(tmp_path)


def with_tls(settings, tls):
    return attrs.evolve(settings, tls=tls)


async def served_certificate(local, certificates):
    """The serial number of what a newcomer is shown."""
    stream, _ = await local.open_stream(ssl_context=certificates.client())
    await stream.do_handshake()
    serial = stream.getpeercert()["serialNumber"]
    await trio.aclose_forcefully(stream)
    return serial


async def strict_stream(local, certificates):
    """A client's stream that raises at an end by FIN alone."""
    plain = await trio.open_tcp_stream(*local.service.addresses[0])
    return trio.SSLStream(plain, certificates.client(), server_hostname="localhost")


async def say_hello(stream):
    # With TLS 1.3 a client hears only after its own half of the handshake that it is refused.
    await stream.send_all(head("GET", "/health"))
    await stream.receive_some()


async def refused(local, context):
    """OpenSSL's word for the alert with which a client is turned away."""
    stream, _ = await local.open_stream(ssl_context=context)
    with pytest.raises(trio.BrokenResourceError) as caught:
        await say_hello(stream)
    await trio.aclose_forcefully(stream)
    cause = caught.value.__cause__
    assert isinstance(cause, ssl.SSLError), "the connection ended without an alert"
    return cause.reason


# What is spoken.


@pytest.mark.trio
async def test_wss_and_https_are_served_on_the_one_port(certificates):
    async with certificates.open_service() as local:
        host, port = local.service.addresses[0]
        assert local.ws_url == f"wss://{host}:{port}"
        assert local.http_url == f"https://{host}:{port}"
        assert (await ask(local, "GET", "/health")).json["status"] == "healthy"
        await serves_a_healthy_pair(local)


@pytest.mark.trio
async def test_it_works_in_memory_too(certificates):
    async with certificates.open_service(in_memory=True) as local:
        assert (await ask(local, "GET", "/health")).json["status"] == "healthy"
        await serves_a_healthy_pair(local)


@pytest.mark.trio
async def test_register_hands_out_wss(certificates):
    body = json.dumps({"user_id": "ada", "backend_url": "http://localhost:8000"}).encode()
    async with certificates.open_service() as local:
        answer = await ask(local, "POST", "/api/register", body, {"host": "collab.example.org:9000"})
        assert answer.json["collab_ws_url"] == "wss://collab.example.org:9000"


@pytest.mark.trio
async def test_the_address_of_the_peer_is_known(certificates):
    async with certificates.open_service() as local:
        await local.connect("ada")
        (connection,) = local.service.registry.connections()
        assert connection.address == "127.0.0.1"


@pytest.mark.trio
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_1_2_and_1_3_are_spoken(certificates, version):
    context = certificates.client()
    context.minimum_version = context.maximum_version = version
    async with certificates.open_service() as local:
        ada = await local.connect("ada", ssl_context=context)
        assert ada.stream.version() == version.name.replace("_", ".")
        assert await ada.echoes()


@pytest.mark.trio
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_older_versions_are_refused(certificates, version):
    context = certificates.client()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    # OpenSSL itself does not offer them any more, unless it is told to.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    async with certificates.open_service() as local:
        assert await refused(local, context) == "TLSV1_ALERT_PROTOCOL_VERSION"
        await serves_a_healthy_pair(local)


@pytest.mark.trio
@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["http/1.1"], "http/1.1"), (["h2", "http/1.1"], "http/1.1"), (["h2"], None), ([], None)],
)
async def test_http_1_1_is_chosen_wherever_it_is_offered(certificates, offered, chosen):
    context = certificates.client()
    if offered:
        context.set_alpn_protocols(offered)
    async with certificates.open_service() as local:
        stream, _ = await local.open_stream(ssl_context=context)
        await stream.do_handshake()
        assert stream.selected_alpn_protocol() == chosen
        await stream.send_all(head("GET", "/ready"))
        assert (await read_answer(stream)).status == 200
        await trio.aclose_forcefully(stream)


@pytest.mark.trio
async def test_a_client_that_speaks_h2_alone_is_told_that_it_is_not_spoken(certificates):
    context = certificates.client()
    context.set_alpn_protocols(["h2"])
    async with certificates.open_service() as local:
        stream, _ = await local.open_stream(ssl_context=context)
        await stream.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
        assert (await read_answer(stream)).refusal == (505, "http_version_not_supported")
        assert await read_to_end(stream) == b""
        await trio.aclose_forcefully(stream)


def test_nobody_can_renegotiate(certificates):
    # Python's clients cannot ask for it; `openssl s_client -tls1_2` with the command R can.
    tls = Tls.from_settings(certificates.settings)
    assert tls.context.options & ssl.OP_NO_RENEGOTIATION


@pytest.mark.trio
@pytest.mark.parametrize(
    "said", [head("GET", "/health"), head("GET", ADA, UPGRADE), b"\x16\x03\x01\x00", b"\0\xff junk", b"\x80"]
)
async def test_what_is_not_tls_gets_no_http_answer_and_is_logged_at_debug_alone(certificates, caplog, said):
    caplog.set_level(logging.DEBUG)
    async with certificates.open_service(BRISK) as local:
        host, port = local.service.addresses[0]
        for _ in range(3):
            async with await trio.open_tcp_stream(host, port) as stream:
                await stream.send_all(said)
                assert b"HTTP" not in await read_to_end(stream)
        await serves_a_healthy_pair(local)
    told = [record for record in caplog.records if record.levelno > logging.INFO]
    assert told == []
    assert "Traceback" not in caplog.text


@pytest.mark.trio
async def test_plain_http_is_noted_in_the_debug_log_with_the_address(certificates, caplog):
    caplog.set_level(logging.DEBUG)
    async with certificates.open_service(BRISK) as local:
        host, port = local.service.addresses[0]
        async with await trio.open_tcp_stream(host, port) as stream:
            await stream.send_all(head("GET", "/health"))
            await read_to_end(stream)
    assert "TLS handshake failed" in caplog.text
    assert "http request" in caplog.text
    assert "127.0.0.1" in caplog.text


@pytest.mark.trio
async def test_a_client_that_does_not_trust_the_certificate_ends_itself_alone(certificates):
    async with certificates.open_service(BRISK) as local:
        stream, _ = await local.open_stream(ssl_context=ssl.create_default_context())
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await trio.aclose_forcefully(stream)
        await serves_a_healthy_pair(local)


# Certificates of clients.


@pytest.mark.trio
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_where_a_certificate_is_required_none_and_one_of_another_authority_are_refused(
    certificates, version
):
    tls = certificates.for_clients("required")
    without = certificates.client()
    stranger = certificates.client_with_certificate(trustme.CA())
    known = certificates.client_with_certificate()
    for context in (without, stranger, known):
        context.minimum_version = context.maximum_version = version
    async with open_service(with_tls(BRISK, tls), ssl_context=known) as local:
        assert await refused(local, without) in (
            "TLSV13_ALERT_CERTIFICATE_REQUIRED",
            "SSLV3_ALERT_HANDSHAKE_FAILURE",
        )
        assert await refused(local, stranger) == "TLSV1_ALERT_UNKNOWN_CA"
        await serves_a_healthy_pair(local)
        assert local.online() == set()


@pytest.mark.trio
async def test_where_a_certificate_is_optional_none_is_let_in_and_one_of_another_authority_is_not(
    certificates,
):
    tls = certificates.for_clients("optional")
    async with open_service(with_tls(BRISK, tls), ssl_context=certificates.client()) as local:
        await local.connect("ada")
        await local.connect("bob", ssl_context=certificates.client_with_certificate())
        assert local.online() == {"ada", "bob"}
        stranger = certificates.client_with_certificate(trustme.CA())
        assert await refused(local, stranger) == "TLSV1_ALERT_UNKNOWN_CA"


@pytest.mark.trio
async def test_where_none_is_asked_for_a_certificate_of_any_authority_does_no_harm(certificates):
    async with certificates.open_service() as local:
        await local.connect("ada", ssl_context=certificates.client_with_certificate(trustme.CA()))


# Closing.


@pytest.mark.trio
async def test_the_end_of_an_answer_is_marked_by_close_notify(certificates):
    async with certificates.open_service() as local:
        stream = await strict_stream(local, certificates)
        await stream.send_all(head("GET", "/health"))
        assert (await read_answer(stream)).status == 200
        assert await stream.receive_some() == b""
        await trio.aclose_forcefully(stream)


@pytest.mark.trio
@pytest.mark.parametrize("first", ["service", "backend"])
async def test_the_end_of_a_websocket_is_marked_by_close_notify(certificates, first):
    async with certificates.open_service() as local:
        stream = await strict_stream(local, certificates)
        backend = FakeBackend(stream, far_end=None, timeout_seconds=5)
        await backend.open("localhost", ADA)
        await backend.receive("connected")
        if first == "service":
            await stream.send_all(frame(BINARY, b"x"))
            assert (await stream.receive_some())[:1] == b"\x88"
        await stream.send_all(frame(CLOSE, b"\x03\xe8"))
        if first == "backend":
            assert (await stream.receive_some())[:1] == b"\x88"
        assert await stream.receive_some() == b""
        await trio.aclose_forcefully(stream)


@pytest.mark.trio
@pytest.mark.parametrize("way", ["close_notify", "fin"])
async def test_a_client_that_has_ended_its_side_gets_its_answer(certificates, way):
    async with certificates.open_service(BRISK) as local:
        stream, _ = await local.open_stream()
        await stream.send_all(head("GET", "/health"))
        if way == "fin":
            await send_fin(stream)
        else:
            with pytest.raises(ssl.SSLWantReadError):
                stream._ssl_object.unwrap()
            await stream.transport_stream.send_all(stream._outgoing.read())
        data = await read_to_end(stream.transport_stream)
        assert len(data) > 100
        await trio.aclose_forcefully(stream)


@pytest.mark.trio
@pytest.mark.parametrize("end", ["close", "drop", "fin", "close_notify"])
async def test_however_a_backend_leaves_it_is_gone_and_nothing_is_left(certificates, end):
    async with certificates.open_service(BRISK) as local:
        await trio.testing.wait_all_tasks_blocked(0.01)
        before = Holdings.now()
        ada = await local.connect("ada")
        if end == "close":
            await ada.close()
        elif end == "drop":
            await ada.drop()
        elif end == "fin":
            await send_fin(ada.stream)
            assert (await ada.wait_closed()).code == 1006
        else:
            with pytest.raises(ssl.SSLWantReadError):
                ada.stream._ssl_object.unwrap()
            await ada.stream.transport_stream.send_all(ada.stream._outgoing.read())
            assert (await ada.wait_closed()).code == 1006
        await trio.aclose_forcefully(ada.stream)
        await check_i7_baseline(before)
        assert local.online() == set()


@pytest.mark.trio
async def test_a_refused_client_that_sends_on_reads_its_answer(certificates):
    """Closing with bytes unread would reset the answer on its way."""
    settings = attrs.evolve(BRISK, limits=LimitSettings(message_bytes=1000))
    async with certificates.open_service(settings) as local:
        stream, _ = await local.open_stream()
        await stream.send_all(head("POST", "/api/register", {"content-length": "200000"}))
        await stream.send_all(bytes(200_000))
        assert (await read_answer(stream)).refusal == (413, "too_large")
        await trio.aclose_forcefully(stream)


@pytest.mark.trio
async def test_a_drain_closes_with_1001_and_ends(certificates):
    async with certificates.open_service() as local:
        ada = await local.connect("ada")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(local.service.drain)
            assert (await ada.receive())["event"] == "service_shutdown"
            assert (await ada.wait_closed()).code == 1001
        assert local.online() == set()


@pytest.mark.trio
async def test_a_drain_waits_for_no_handshake(autojump_clock, certificates):
    async with certificates.open_service(in_memory=True) as local:
        near, far = trio.testing.memory_stream_pair()
        far.socket = (await local.open_stream())[1].socket
        async with trio.open_nursery() as nursery:
            nursery.start_soon(local.service.serve_stream, far)
            await trio.testing.wait_all_tasks_blocked()
            before = trio.current_time()
            await local.service.drain()
            assert trio.current_time() - before < 1
        await near.aclose()


@pytest.mark.trio
async def test_a_reader_that_stalls_does_not_hold_up_the_end(certificates):
    settings = attrs.evolve(BRISK, server=ServerSettings(drain=Duration("1s")))
    async with certificates.open_service(settings) as local:
        stream = await small_receiver(local)
        await stream.send_all(head("GET", ADA, UPGRADE))
        ada = await local.connect("sender")
        for number in range(200):
            await ada.send_event("t", ["ada"], "x" * 10_000, id=number)
        with trio.fail_after(PATIENCE_SECONDS):
            await local.service.drain()
        await trio.aclose_forcefully(stream)


@pytest.mark.trio
async def test_nothing_of_an_ended_connection_waits_for_the_garbage_collector(certificates):
    """A connection under TLS holds tens of kilobytes."""
    kept: list[weakref.ref[ssl.SSLObject]] = []
    init = TlsStream.__init__

    def remember(stream, plain, context):
        init(stream, plain, context)
        kept.append(weakref.ref(stream._parts.tls))

    async with certificates.open_service() as local:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TlsStream, "__init__", remember)
            gc.collect()
            gc.disable()
            try:
                await trio.testing.wait_all_tasks_blocked(0.01)
                before = Holdings.now()
                ada = await local.connect("ada")
                await ada.close()
                await ask(local, "GET", "/health")
                await settles_at(before)
                await trio.testing.wait_all_tasks_blocked(0.01)
                alive = [stream() for stream in kept if stream() is not None]
            finally:
                gc.enable()
    assert len(kept) == 2
    assert alive == []


# Read and written without waiting.


@asynccontextmanager
async def open_records(local, certificates, directory, *said, user_id="ada"):
    """A client that makes its own records, past the upgrade; `said` comes with it, a record each."""
    keys = directory / f"keys-{user_id}"
    stream, _ = await local.open_stream(ssl_context=logs_keys(certificates.client(), keys))
    await stream.do_handshake()
    records = Records(stream, keys)
    await records.send(head("GET", f"/?user_id={user_id}&backend_url=http://x&presence=none", UPGRADE), *said)
    with trio.fail_after(PATIENCE_SECONDS):
        await records.receive_until(b'"connected"')
        yield records
    await trio.aclose_forcefully(stream)


@pytest.mark.trio
async def test_an_established_connection_is_pumped_and_written_through_and_needs_no_writer(certificates):
    async with certificates.open_service() as local:
        ada, bob = await local.connect("ada"), await local.connect("bob")
        pump = local.service._pump
        assert {pumped.connection.user_id for pumped in pump._by_descriptor.values()} == {"ada", "bob"}
        await ada.send_event("t", ["bob"], "x" * 60_000)
        assert (await bob.receive("collab_event"))["data"]["data"] == "x" * 60_000
        assert all(life._written is None for life in local.service._acceptor._lives)


@pytest.mark.trio
async def test_where_nothing_is_pumped_it_works_too(certificates):
    async with certificates.open_service(pumped=False) as local:
        await serves_a_healthy_pair(local)


@pytest.mark.trio
async def test_what_was_read_with_the_upgrade_and_not_decrypted_yet_is_taken(certificates, tmp_path):
    """No epoll will tell of it."""
    async with certificates.open_service() as local:
        bob = await local.connect("bob")
        events = [event_text(["bob"], number) for number in range(40)]
        async with open_records(local, certificates, tmp_path, *events):
            heard = [(await bob.receive("collab_event"))["data"]["data"] for _ in events]
        assert heard == list(range(40))


@pytest.mark.trio
@pytest.mark.parametrize("with_upgrade", [True, False])
async def test_what_comes_with_close_notify_is_delivered_and_the_end_is_seen(
    certificates, tmp_path, with_upgrade
):
    """The client's own end of TCP never comes."""
    async with certificates.open_service() as local:
        bob = await local.connect("bob")
        keys = tmp_path / "keys"
        stream, _ = await local.open_stream(ssl_context=logs_keys(certificates.client(), keys))
        await stream.do_handshake()
        records = Records(stream, keys)
        upgrade = records.ours.seal(DATA, head("GET", ADA, UPGRADE))
        last_words = records.ours.seal(DATA, event_text(["bob"], "last words"))
        last_words += records.ours.seal(ALERT, CLOSE_NOTIFY)
        if with_upgrade:
            await records.stream.send_all(upgrade + last_words)
        else:
            await records.stream.send_all(upgrade)
            await records.receive_until(b'"connected"')
            await records.stream.send_all(last_words)
        assert (await bob.receive("collab_event"))["data"]["data"] == "last words"
        with trio.fail_after(PATIENCE_SECONDS):
            while await records.receive():
                pass
        assert local.online() == {"bob"}
        await trio.aclose_forcefully(stream)


@pytest.mark.trio
async def test_keys_may_change_while_events_go_both_ways(certificates, tmp_path):
    async with certificates.open_service() as local:
        bob = await local.connect("bob")
        async with open_records(local, certificates, tmp_path) as records:
            for number in range(20):
                event = event_text(["bob"], number)
                before = records.ours.seal(DATA, event[:9])
                await records.stream.send_all(before + records.updated())
                # In the middle of a message, and of a record.
                rest = records.ours.seal(DATA, event[9:])
                await records.stream.send_all(rest[:7])
                await trio.testing.wait_all_tasks_blocked()
                await records.stream.send_all(rest[7:])
                assert (await bob.receive("collab_event"))["data"]["data"] == number
                await bob.send_event("t", ["ada"], f"back {number}")
                await records.receive_until(f"back {number}".encode())
            assert records.updates == 20


@pytest.mark.trio
async def test_who_has_its_keys_changed_for_ever_and_reads_nothing_is_ended(certificates, tmp_path, caplog):
    """Each answer would be kept for it."""
    async with certificates.open_service() as local:
        async with open_records(local, certificates, tmp_path) as records:
            with suppress(trio.BrokenResourceError):
                for _ in range(1000):
                    await records.stream.send_all(b"".join(records.updated() for _ in range(500)))
            assert local.online() == set()
        await serves_a_healthy_pair(local)
        assert caplog.text == ""


@pytest.mark.trio
@pytest.mark.parametrize("behind", [b"", event_text(["bob"], "whole")])
async def test_a_record_that_was_tampered_with_ends_its_connection_alone(certificates, tmp_path, behind):
    async with certificates.open_service() as local:
        bob = await local.connect("bob")
        async with open_records(local, certificates, tmp_path) as records:
            wire = records.ours.seal(DATA, behind) if behind else b""
            bad = bytearray(records.ours.seal(DATA, event_text(["bob"], "tampered with")))
            bad[20] ^= 1
            await records.stream.send_all(
                wire + bytes(bad) + records.ours.seal(DATA, event_text(["bob"], "x"))
            )
            if behind:
                assert (await bob.receive("collab_event"))["data"]["data"] == "whole"
            while await records.receive():
                pass
            # RFC 8446 section 6.2: bad_record_mac, fatal.
            assert records.alerts == [b"\x02\x14"]
        assert local.online() == {"bob"}
        assert await bob.echoes()
        await serves_a_healthy_pair(local)


@asynccontextmanager
async def open_tap(certificates, version=ssl.TLSVersion.TLSv1_3):
    """A tap over TLS past all handshakes, with a mailbox that writes through, and the client's stream.

    The socket's buffer is as small as it can be.
    """
    ours, far = trio.socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    server = TlsStream(trio.SocketStream(ours), Tls(certificates.settings).context)
    context = certificates.client()
    context.minimum_version = context.maximum_version = version
    client = trio.SSLStream(trio.SocketStream(far), context, server_hostname="localhost")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.handshake)
        nursery.start_soon(client.do_handshake)
    # The tickets go out with the first that is sent.
    await server.send_all(b"!")
    assert await client.receive_some(1) == b"!"
    tap = Tap(
        server,
        b"",
        b"",
        max_message_bytes=1 << 20,
        write_seconds=10,
        controls=FloodMeter(Rate(0, 0), Stops()),
    )
    outbox = Outbox()
    mailbox = Mailbox(outbox, max_messages=1000, max_bytes=1 << 30)
    mailbox.write_through(tap.write_now)
    tap.pump()
    try:
        yield tap, outbox, mailbox, client
    finally:
        tap.release()
        mailbox.release()
        ours.close()
        far.close()


async def write_as_a_life_does(tap, mailbox):
    with suppress(trio.EndOfChannel):
        while True:
            await tap.send(await mailbox.take())
            mailbox.sent()


SIZES = st.sampled_from([2, 125, 4000, 16_384, 16_385, 65_535, 65_536, 65_537, 200_000])
ROUNDS = st.lists(st.tuples(st.lists(SIZES, min_size=1, max_size=4), st.integers(0, 150_000)), max_size=8)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@settings(max_examples=count(15, 300))
@given(rounds=ROUNDS)
def test_short_writes_lose_nothing_and_keep_the_order(certificates, version, rounds):
    """In each round some frames are put in, and the client reads so much, or nothing."""

    async def play():
        expected, heard = bytearray(), bytearray()
        async with (
            open_tap(certificates, version) as (tap, outbox, mailbox, client),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(write_as_a_life_does, tap, mailbox)
            for sizes, read_bytes in rounds:
                with outbox:
                    for size in sizes:
                        item = (len(expected).to_bytes(8, "big") * (size // 8 + 1))[:size]
                        expected += item
                        assert mailbox.put(item)
                until = min(len(heard) + read_bytes, len(expected))
                while len(heard) < until:
                    heard += await client.receive_some(until - len(heard))
                assert mailbox.bytes >= 0
            while len(heard) < len(expected):
                heard += await client.receive_some(65536)
            await trio.testing.wait_all_tasks_blocked()
            assert (mailbox.messages, mailbox.bytes) == (0, 0)
            mailbox.close(discard=False)
        assert heard == expected

    async def in_time():
        with trio.fail_after(30):
            await play()

    trio.run(in_time)


@pytest.mark.trio
async def test_what_a_short_write_has_left_goes_before_close_notify(certificates):
    async with open_tap(certificates) as (tap, _, _, client):
        frame_bytes = text_frame(b"a" * 60_000)
        # All is encrypted, not all of it is out.
        assert tap.write_now(frame_bytes) == len(frame_bytes) - 1
        assert tap.write_now(frame_bytes) == 0
        heard = bytearray()

        async def listen():
            while data := await client.receive_some():
                heard.extend(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await tap.send_close(Close(CloseCode.GOING_AWAY, "bye"))
            await tap.send_end()
        assert heard == frame_bytes + close_frame(Close(CloseCode.GOING_AWAY, "bye"))


@pytest.mark.trio
async def test_nothing_goes_out_behind_half_a_record(certificates, autojump_clock):
    async with open_tap(certificates) as (tap, _, _, client):
        frame_bytes = text_frame(b"a" * 60_000)
        assert tap.write_now(frame_bytes) == len(frame_bytes) - 1
        with pytest.raises(trio.BrokenResourceError, match="write deadline"):
            await tap.send(b"")
        assert tap.timed_out
        with pytest.raises(trio.BrokenResourceError):
            await tap.send(frame_bytes)
        await tap.send_close(Close(CloseCode.GOING_AWAY, "bye"))
        await tap.send_end()
        tap._stream.socket.shutdown(socket.SHUT_WR)
        heard = b""
        # The end comes in the middle of a record.
        with suppress(trio.BrokenResourceError):
            while data := await client.receive_some():
                heard += data
        assert frame_bytes.startswith(heard)


# Renewal.


@pytest.mark.trio
async def test_a_renewed_pair_is_shown_to_newcomers_and_old_connections_go_on(renewed):
    async with renewed.open_service() as local:
        cyd, dan = await local.connect("healthy-cyd"), await local.connect("healthy-dan")
        first = await served_certificate(local, renewed)
        renewed.renew()
        assert await served_certificate(local, renewed) == first
        local.service.reload()
        second = await served_certificate(local, renewed)
        assert second != first
        await exchange(cyd, dan)
        await serves_a_healthy_pair(local)


@pytest.mark.trio
async def test_a_changed_file_is_seen_within_seconds(renewed, autojump_clock, caplog):
    caplog.set_level(logging.INFO)
    tls = Tls.from_settings(renewed.settings)
    first = tls.context
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tls.run)
        await trio.sleep(60)
        assert tls.context is first
        renewed.renew()
        await trio.sleep(3)
        assert tls.context is not first
        second = tls.context
        await trio.sleep(60)
        assert tls.context is second
        nursery.cancel_scope.cancel()
    assert caplog.text.count("TLS certificate renewed") == 1
    assert "expires" in caplog.text


@pytest.mark.trio
async def test_a_link_that_points_elsewhere_is_a_change(tmp_path, autojump_clock):
    generations = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        generations.append(Certificates(tmp_path / name))
    current = tmp_path / "current"
    current.symlink_to("first")
    tls = Tls.from_settings(
        TlsSettings(cert_file=str(current / "cert.pem"), key_file=str(current / "key.pem"))
    )
    first = tls.context
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tls.run)
        beside = tmp_path / "beside"
        beside.symlink_to("second")
        beside.replace(current)
        await trio.sleep(3)
        assert tls.context is not first
        nursery.cancel_scope.cancel()


def cut(certificates):
    certificates.cert_file.write_bytes(certificates.cert_file.read_bytes()[:-200])


def empty(certificates):
    certificates.cert_file.write_bytes(b"")


def junk(certificates):
    certificates.key_file.write_bytes(os.urandom(500))


def swap(certificates):
    pem = certificates.authority.issue_cert("localhost").private_key_pem
    certificates.key_file.write_bytes(pem.bytes())


def remove(certificates):
    certificates.key_file.unlink()


def without_rights(certificates):
    certificates.key_file.unlink()
    certificates.key_file.mkdir()


SPOILED = {
    cut: "not a certificate and its key in PEM",
    empty: "not a certificate and its key in PEM",
    junk: "not a certificate and its key in PEM",
    swap: "the key does not fit the certificate",
    remove: "tls.key_file: cannot read",
    without_rights: "tls.key_file: cannot read",
}


@pytest.mark.trio
@pytest.mark.parametrize("spoil", [cut, empty, junk, swap, remove])
async def test_a_bad_pair_keeps_the_old_one_says_so_once_and_is_tried_again(
    renewed, autojump_clock, caplog, spoil
):
    caplog.set_level(logging.INFO)
    tls = Tls.from_settings(renewed.settings)
    first = tls.context
    good = {path: path.read_bytes() for path in (renewed.cert_file, renewed.key_file)}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tls.run)
        spoil(renewed)
        await trio.sleep(60)
        assert tls.context is first
        assert caplog.text.count("the old one goes on") == 1
        assert SPOILED[spoil] in caplog.text
        for path, pem in good.items():
            path.write_bytes(pem)
        await trio.sleep(3)
        assert tls.context is not first
        assert caplog.text.count("TLS certificate renewed") == 1
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_pair_that_is_replaced_a_file_at_a_time_is_never_mixed(renewed, autojump_clock):
    tls = Tls.from_settings(renewed.settings)
    first = tls.context
    other = renewed.authority.issue_cert("localhost")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tls.run)
        renewed.cert_file.write_bytes(other.cert_chain_pems[0].bytes())
        await trio.sleep(10)
        assert tls.context is first
        renewed.key_file.write_bytes(other.private_key_pem.bytes())
        await trio.sleep(3)
        assert tls.context is not first
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_bad_authority_for_clients_does_not_open_the_door(renewed, caplog):
    tls = renewed.for_clients("required")
    known = renewed.client_with_certificate()
    async with open_service(with_tls(BRISK, tls), ssl_context=known) as local:
        renewed.root_file.write_bytes(b"")
        local.service.reload()
        assert "tls.client_ca_file" in caplog.text
        assert await refused(local, renewed.client()) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
        await serves_a_healthy_pair(local)


@pytest.mark.trio
async def test_a_new_authority_for_clients_refuses_those_of_the_old_one_also_by_their_session(renewed):
    context = renewed.client_with_certificate()
    async with open_service(with_tls(BRISK, renewed.for_clients("required")), ssl_context=context) as local:
        stream, _ = await local.open_stream()
        await stream.send_all(head("GET", "/health"))
        assert (await read_answer(stream)).status == 200
        session = stream.session
        assert session.has_ticket
        await trio.aclose_forcefully(stream)
        trustme.CA().cert_pem.write_to_path(renewed.root_file)
        local.service.reload()
        stream, _ = await local.open_stream()
        stream.session = session
        with pytest.raises(trio.BrokenResourceError):
            await say_hello(stream)
        await trio.aclose_forcefully(stream)


# The start.


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (TlsSettings(cert_file="x"), "tls.cert_file is set: set tls.key_file too"),
        (TlsSettings(key_file="x"), "tls.key_file is set: set tls.cert_file too"),
        (TlsSettings(client_ca_file="x"), "tls.client_ca_file is set: set tls.cert_file too"),
    ],
)
def test_half_a_pair_is_a_mistake(settings, named):
    with pytest.raises(SettingsError, match=named):
        Tls.from_settings(settings)


def test_it_is_off_without_a_certificate():
    assert Tls.from_settings(TlsSettings()) is None


@pytest.mark.parametrize("spoil", SPOILED)
def test_a_pair_that_cannot_be_used_is_a_mistake_at_the_start(renewed, spoil):
    spoil(renewed)
    with pytest.raises(SettingsError, match=SPOILED[spoil]) as caught:
        Tls.from_settings(renewed.settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pem", [b"", b"junk"])
def test_a_file_without_authorities_is_a_mistake(renewed, pem):
    renewed.root_file.write_bytes(pem)
    with pytest.raises(SettingsError, match=r"tls\.client_ca_file: no certificates in PEM"):
        Tls.from_settings(renewed.for_clients())


def test_an_encrypted_key_is_a_mistake_and_nobody_is_asked_for_its_password(renewed):
    key = load_pem_private_key(renewed.key_file.read_bytes(), None)
    locked_file = renewed.key_file.with_name("locked")
    locked_file.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    locked = attrs.evolve(renewed.settings, key_file=str(locked_file))
    with pytest.raises(SettingsError, match="the key is encrypted"):
        Tls.from_settings(locked)


@pytest.mark.trio
async def test_a_service_that_cannot_use_its_pair_does_not_start_and_leaves_nothing(renewed):
    await trio.testing.wait_all_tasks_blocked(0.01)
    before = Holdings.now()
    swap(renewed)
    settings = Settings(server=ServerSettings(host="127.0.0.1", port=0), tls=renewed.settings)
    with pytest.RaisesGroup(SettingsError):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, settings)
    await settles_at(before)
