"""Where settings come from, and how a mistake in any of them is told."""

from __future__ import annotations

import os

import attrs
import pytest
import typed_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from collab.errors import SettingsError
from collab.settings import (
    Duration,
    LimitSettings,
    ServerSettings,
    Settings,
    Size,
    TimeoutSettings,
    load_settings,
    options_of,
    read_settings,
)


@pytest.fixture
def config(tmp_path):
    """Writes a config file and gives its path."""

    def write(text):
        path = tmp_path / "collab.toml"
        path.write_text(text)
        return path

    return write


def mistake(config_file=None, environ=None, flags=None):
    with pytest.raises(SettingsError) as caught:
        load_settings(config_file, environ or {}, flags or {})
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_defaults_are_those_of_the_protocol():
    settings = load_settings(None, {}, {})
    assert settings == Settings()
    assert {option.path: option.default for option in options_of(Settings)} == {
        "server.host": "localhost",
        "server.port": 9000,
        "server.public_url": None,
        "server.drain": 10,
        "server.reconnect_spread": 5,
        "limits.message_bytes": 64 * 1024,
        "limits.max_recipients": 1000,
        "limits.mailbox_messages": 256,
        "limits.mailbox_bytes": 1024 * 1024,
        "limits.in_flight": 64,
        "limits.slow_consumer": 2,
        "limits.control_frames": 20,
        "limits.errors": 20,
        "limits.events_per_second": 0,
        "limits.burst": 0,
        "limits.connects_per_second": 0,
        "limits.connections_per_user": 8,
        "limits.connections_per_address": 0,
        "limits.connections": 0,
        "timeouts.handshake": 5,
        "timeouts.write": 10,
        "timeouts.close": 2,
        "timeouts.ping_interval": 25,
        "timeouts.ping_timeout": 20,
        "log.level": "info",
        "log.format": "text",
        "log.file": "collaboration-service.log",
        "log.events_per_second": 50,
        "http.cors_origins": ("*",),
        "origins.allowed": ("*",),
        "origins.allow_absent": True,
        "origins.allow_null": False,
        "auth.mode": "none",
        "auth.secret": "",
        "auth.public_key_file": None,
        "auth.jwks_url": None,
        "auth.issuer": None,
        "auth.audience": None,
        "auth.leeway": 10,
        "policy.send": "open",
        "policy.file": None,
        "events.validation": "off",
        "events.schema_dir": None,
        "tls.cert_file": None,
        "tls.key_file": None,
        "tls.client_ca_file": None,
        "tls.client_auth": "required",
        "admin.token": "",
        "audit.file": None,
        "audit.routes": True,
        "audit.on_full": "continue",
        "audit.max_bytes": 100 * 1024 * 1024,
        "audit.backups": 10,
    }


def test_every_setting_has_a_help_text_and_a_default():
    for option in options_of(Settings):
        assert option.help.endswith("."), option.path
        assert option.default is not attrs.NOTHING, option.path


def test_a_flag_beats_the_environment_and_the_environment_beats_the_file(config):
    file = config("[server]\nhost = 'file'\nport = 1\ndrain = '1s'\n[limits]\nmessage_bytes = '1MiB'\n")
    environ = {"COLLAB_SERVER__HOST": "environment", "COLLAB_SERVER__PORT": "2", "PATH": "/bin"}
    loaded = read_settings(Settings, file, environ, {"server.port": "3", "server.host": None})
    assert loaded.settings == Settings(
        server=ServerSettings(host="environment", port=3, drain=Duration("1s")),
        limits=LimitSettings(message_bytes=Size("1MiB")),
    )
    assert loaded.sources["server.port"] == "flag --port"
    assert loaded.sources["server.host"] == "environment variable COLLAB_SERVER__HOST"
    assert loaded.sources["server.drain"] == f"file {file}"
    assert loaded.sources["server.public_url"] == "default"


def test_the_bare_port_variable_beats_the_file_and_nothing_else(config):
    file = config("[server]\nport = 1\n")
    assert load_settings(file, {"PORT": "2"}, {}).server.port == 2
    assert load_settings(file, {"PORT": "2", "COLLAB_SERVER__PORT": "3"}, {}).server.port == 3
    assert load_settings(file, {"PORT": "2"}, {"server.port": "4"}).server.port == 4
    assert load_settings(file, {"PORT": ""}, {}).server.port == 1
    assert load_settings(file, {"PORT": "tcp://x", "COLLAB_SERVER__PORT": "3"}, {}).server.port == 3
    assert "(environment variable PORT)" in mistake(file, {"PORT": "tcp://x"})


def test_every_kind_of_value_can_come_from_the_environment():
    settings = load_settings(
        None,
        {
            "COLLAB_SERVER__PUBLIC_URL": "wss://collab.example.org/ws",
            "COLLAB_SERVER__DRAIN": "500ms",
            "COLLAB_LIMITS__MESSAGE_BYTES": "1MiB",
            "COLLAB_LIMITS__CONNECTIONS": "100",
            "COLLAB_LOG__LEVEL": "debug",
            "COLLAB_LOG__FILE": "",
            "COLLAB_HTTP__CORS_ORIGINS": "https://a.example.org, http://localhost:3000",
            "COLLAB_ORIGINS__ALLOW_NULL": "true",
            "COLLAB_ORIGINS__ALLOWED": "",
        },
        {},
    )
    assert settings.server.public_url == "wss://collab.example.org/ws"
    assert settings.server.drain == 0.5
    assert settings.limits.message_bytes == 1024 * 1024
    assert settings.limits.connections == 100
    assert settings.log.level == "debug"
    assert settings.log.file == ""
    assert settings.http.cors_origins == ("https://a.example.org", "http://localhost:3000")
    assert settings.origins.allow_null is True
    assert settings.origins.allowed == ()


@pytest.mark.parametrize(
    "url", ["ws://a", "wss://a.example.org/ws", "http://[::1]:9000", "https://a.example.org/"]
)
def test_the_public_url_can_be_of_http_or_websocket(url):
    assert load_settings(None, {"COLLAB_SERVER__PUBLIC_URL": url}, {}).server.public_url == url


def test_every_kind_of_value_can_come_from_a_file(config):
    file = config("""
        [server]
        public_url = ""
        drain = 3
        reconnect_spread = 0.5
        [limits]
        message_bytes = 2048
        [http]
        cors_origins = ["https://a.example.org", "https://[::1]:8080"]
        [origins]
        allowed = "https://a.example.org,https://b.example.org"
        allow_absent = false
    """)
    settings = load_settings(file, {}, {})
    assert settings.server.public_url is None
    assert (settings.server.drain, settings.server.reconnect_spread) == (3, 0.5)
    assert isinstance(settings.server.drain, Duration)
    assert isinstance(settings.limits.message_bytes, Size)
    assert settings.http.cors_origins == ("https://a.example.org", "https://[::1]:8080")
    assert settings.origins.allowed == ("https://a.example.org", "https://b.example.org")
    assert settings.origins.allow_absent is False


@pytest.mark.parametrize(
    "line",
    [
        "server.port = '9000'",
        "server.port = true",
        "server.port = 9000.0",
        "server.port = 65536",
        "server.port = -1",
        "server.host = ''",
        "server.host = 'a b'",
        "server.host = 7",
        "server.public_url = 'ftp://example.org'",
        "server.public_url = 'ws://'",
        "server.public_url = 'ws://example.org?a=b'",
        "server.public_url = 'ws://example.org:99999'",
        "server.public_url = false",
        "server.drain = -1",
        "server.drain = nan",
        "server.drain = inf",
        "server.drain = '1 day'",
        "server.reconnect_spread = '499ms'",
        "server.reconnect_spread = '6s'",
        "limits.message_bytes = 0",
        "limits.message_bytes = 1.5",
        "limits.message_bytes = '64 Kilo'",
        "limits.in_flight = 0",
        "limits.connections = -1",
        "timeouts.handshake = 0",
        "timeouts.handshake = true",
        "log.level = 'trace'",
        "log.level = 'INFO'",
        "log.format = 1",
        "log.file = []",
        "log.events_per_second = '50'",
        "http.cors_origins = 7",
        "http.cors_origins = ['https://a.example.org/']",
        "http.cors_origins = ['https://A.example.org']",
        "http.cors_origins = ['*.example.org']",
        "http.cors_origins = [1]",
        "origins.allow_null = 'true'",
        "origins.allow_null = 1",
    ],
)
def test_a_wrong_value_in_a_file_is_told_with_name_file_and_expectation(config, line):
    file = config(line)
    name = line.partition(" ")[0]
    assert mistake(file).startswith(f"{name} (file {file}): expected ")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("COLLAB_SERVER__PORT", "x"),
        ("COLLAB_SERVER__PORT", ""),
        ("COLLAB_SERVER__PORT", "9_000"),
        ("COLLAB_SERVER__PORT", "\u0669"),
        ("COLLAB_LIMITS__IN_FLIGHT", "1.0"),
        ("COLLAB_ORIGINS__ALLOW_NULL", "yes"),
        ("COLLAB_ORIGINS__ALLOW_NULL", ""),
        ("COLLAB_LOG__LEVEL", "Info"),
        ("COLLAB_LOG__FILE", "\udcff"),
        ("COLLAB_TIMEOUTS__WRITE", "soon"),
        ("COLLAB_LIMITS__MAILBOX_BYTES", "9" * 5000),
    ],
)
def test_a_wrong_value_in_the_environment_is_told_with_its_variable(variable, value):
    message = mistake(None, {variable: value})
    assert f"(environment variable {variable}): expected " in message
    assert len(message) < 300


def test_a_wrong_flag_is_told_as_the_flag():
    message = mistake(flags={"server.port": "70000"})
    assert message == "server.port (flag --port): expected a whole number from 0 to 65535, got '70000'"


def test_a_wrong_value_is_refused_even_where_it_is_overridden(config):
    assert "server.port" in mistake(config("server.port = 'x'"), {"COLLAB_SERVER__PORT": "1"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[server]\nprot = 1", "server.prot (file {}): no such setting; did you mean server.port?"),
        ("port = 1", "port (file {}): no such setting; did you mean server.port?"),
        ("[sever]\nport = 1", "[sever] (file {}): no such group; did you mean [server]?"),
        ("[zzz]", "[zzz] (file {}): no such group"),
        (
            "[server.port]\na = 1",
            "server.port (file {}): expected a whole number from 0 to 65535, got {{'a': 1}}",
        ),
        ("server = 5", "server (file {}): expected a table [server], got 5"),
        ("[server]\nxxxxxxx = 1", "server.xxxxxxx (file {}): no such setting"),
    ],
)
def test_an_unknown_name_in_a_file_is_told(config, text, expected):
    file = config(text)
    assert mistake(file) == expected.format(file)


@pytest.mark.parametrize(
    "content",
    [
        b"[server",
        b"port = = 1",
        b"\xff\xfe",
        b"a = 1\na = 2",
        b"a = " + b"[" * 100_000,
        b"a = " + b"9" * 5000,
    ],
)
def test_a_file_that_is_no_toml_is_told_in_one_line(tmp_path, content):
    file = tmp_path / "collab.toml"
    file.write_bytes(content)
    assert mistake(file).startswith(f"cannot read the config file {file}: ")


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    missing = tmp_path / "missing.toml"
    assert mistake(missing) == f"cannot read the config file {missing}: No such file or directory"
    assert mistake(tmp_path) == f"cannot read the config file {tmp_path}: Is a directory"
    loop = tmp_path / "loop.toml"
    os.symlink(loop, loop)
    assert mistake(loop).startswith(f"cannot read the config file {loop}: ")


def test_a_misspelt_variable_is_told_with_the_right_one():
    assert mistake(None, {"COLLAB_SERVER__PROT": "1"}) == (
        "environment variable COLLAB_SERVER__PROT: no such setting; did you mean COLLAB_SERVER__PORT?"
    )
    assert mistake(None, {"COLLAB_SERVER_PORT": "1"}) == (
        "environment variable COLLAB_SERVER_PORT: no such setting; did you mean COLLAB_SERVER__PORT?"
    )
    assert "COLLAB_LIMITS__MESSAGE_BYTES?" in mistake(None, {"COLLAB_LIMITS_MESSAGE_BYTES": "1"})
    assert "no such setting" in mistake(None, {"COLLAB_X__Y": "1"})
    assert "COLLAB_SERVER__PORT?" in mistake(None, {"COLLAB_server__port": "1"})


def test_variables_of_clients_and_of_others_are_left_alone():
    environ = {
        "COLLAB_URL": "ws://localhost",
        "COLLAB_TOKEN": "secret",
        "COLLAB_SERVICE_HOST": "10.0.0.1",
        "COLLAB_HOME": "/srv",
        "XCOLLAB_SERVER__PROT": "1",
    }
    assert load_settings(None, environ, {}) == Settings()


def test_a_wrong_value_is_refused_in_process_too():
    with pytest.raises(SettingsError, match=r"^ServerSettings\.port: expected a whole number from 0"):
        ServerSettings(port=70000)
    with pytest.raises(SettingsError, match=r"^LimitSettings\.message_bytes: expected a size"):
        LimitSettings(message_bytes="64KiB")
    with pytest.raises(SettingsError, match=r"^TimeoutSettings\.write: expected a duration"):
        TimeoutSettings(write=float("nan"))


def test_settings_cannot_be_changed():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Settings().server.port = 1


@attrs.frozen(kw_only=True)
class DoorSettings:
    """A group with a secret in it."""

    number: int = typed_settings.secret(default=0, help="Opens the door.")


@attrs.frozen(kw_only=True)
class HouseSettings:
    """A settings class with a secret in it."""

    door: DoorSettings = DoorSettings()


def test_the_value_of_a_secret_is_never_told():
    with pytest.raises(SettingsError) as caught:
        read_settings(HouseSettings, None, {"COLLAB_DOOR__NUMBER": "hunter2"}, {})
    assert str(caught.value) == (
        "door.number (environment variable COLLAB_DOOR__NUMBER): expected a whole number"
    )


@settings(deadline=None)
@given(
    st.dictionaries(st.text().map("COLLAB_{}".format), st.text(), max_size=3),
    st.sampled_from(options_of(Settings)),
    st.text(),
)
def test_no_environment_raises_anything_but_a_settings_error(environ, option, value):
    try:
        loaded = load_settings(None, {**environ, option.variable: value}, {})
    except SettingsError as error:
        text = str(error)
    else:
        text = repr(loaded)
    assert text.isprintable()
