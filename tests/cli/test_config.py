"""The commands that look at the settings, and how the command tells a mistake."""

from __future__ import annotations

import re
import tomllib
from contextlib import nullcontext
from pathlib import Path

import attrs
import click
import msgspec
import pytest
import typed_settings
from click.testing import CliRunner
from typed_settings import SecretStr

import collab
from collab.cli.command import program
from collab.cli.pages import configuration_page, settings_as_toml
from collab.errors import InvalidEvent
from collab.policy.validation import EventRules
from collab.settings import EventSettings, Settings, load_settings, options_of, read_settings
from collab.wire.messages import CollabEvent, RouteRequest

PAGE = Path(collab.__file__).parent.parent / "docs" / "configuration.md"


def test_config_show_prints_a_file_that_gives_the_same_settings(run, environment, tmp_path):
    environment.setenv("COLLAB_SERVER__PUBLIC_URL", "wss://collab.example.org")
    environment.setenv("COLLAB_LOG__FILE", 'odd "name"\\\t\x7fé.log')
    environment.setenv("COLLAB_LIMITS__SLOW_CONSUMER", "1.25")
    environment.setenv("COLLAB_HTTP__CORS_ORIGINS", "https://a.example.org,https://b.example.org")
    file = tmp_path / "collab.toml"
    file.write_text("[origins]\nallow_null = true\n")
    code, output, errors = run("config", "show", "--config", str(file))
    assert (code, errors) == (0, "")
    shown = tmp_path / "shown.toml"
    shown.write_text(output)
    settings = load_settings(shown, {}, {})
    assert settings.server.public_url == "wss://collab.example.org"
    assert settings.log.file == 'odd "name"\\\t\x7fé.log'
    assert settings.limits.slow_consumer == 1.25
    assert settings.http.cors_origins == ("https://a.example.org", "https://b.example.org")
    assert settings.origins.allow_null is True
    assert f"allow_null = true  # file {file}\n" in output
    assert 'slow_consumer = "1250ms"  # environment variable COLLAB_LIMITS__SLOW_CONSUMER\n' in output
    assert "port = 9000  # default\n" in output


@attrs.frozen(kw_only=True)
class DoorSettings:
    """A group with secrets in it."""

    key: SecretStr = attrs.field(factory=SecretStr)
    spare_key: str = typed_settings.secret(default="", help="Opens the door, too.")
    number: int = 3


@attrs.frozen(kw_only=True)
class HouseSettings:
    """A settings class with secrets in it."""

    door: DoorSettings = DoorSettings()


def test_secrets_are_masked_where_they_are_set():
    loaded = read_settings(HouseSettings, None, {"COLLAB_DOOR__KEY": "hunter2"}, {})
    assert loaded.settings.door.key == "hunter2"
    assert tomllib.loads(settings_as_toml(loaded)) == {
        "door": {"key": "********", "spare_key": "", "number": 3}
    }
    assert "hunter2" not in repr(loaded)


def test_config_check_says_ok(run):
    assert run("config", "check") == (0, "ok\n", "")


def test_config_check_warns_of_what_is_not_safe_and_says_ok(run, environment):
    environment.setenv("COLLAB_SERVER__HOST", "0.0.0.0")
    code, output, errors = run("config", "check")
    assert (code, output) == (0, "ok\n")
    first, second = errors.splitlines()
    assert first.startswith("warning: Authentication is off, and server.host is 0.0.0.0: ")
    assert second.startswith("warning: TLS is off, and server.host is 0.0.0.0: ")


def test_config_check_takes_a_sound_pair_and_no_other(run, environment, certificates, tmp_path):
    environment.setenv("COLLAB_TLS__CERT_FILE", str(certificates.cert_file))
    assert run("config", "check") == (2, "", "trio-collab: tls.cert_file is set: set tls.key_file too\n")
    environment.setenv("COLLAB_TLS__KEY_FILE", str(tmp_path / "missing"))
    code, output, errors = run("config", "check")
    assert (code, output) == (2, "")
    assert errors == f"trio-collab: tls.key_file: cannot read {tmp_path}/missing: No such file or directory\n"
    environment.setenv("COLLAB_TLS__KEY_FILE", str(certificates.key_file))
    assert run("config", "check") == (0, "ok\n", "")


def test_a_mistake_in_the_settings_is_one_line_and_exit_code_2(run, environment, tmp_path):
    environment.setenv("COLLAB_SERVER__PROT", "1")
    for arguments in (["config", "check"], ["config", "show"], ["serve"]):
        assert run(*arguments) == (
            2,
            "",
            "trio-collab: environment variable COLLAB_SERVER__PROT: no such setting; "
            "did you mean COLLAB_SERVER__PORT?\n",
        )


def test_config_check_reads_the_event_schemas(run, environment, tmp_path):
    environment.setenv("COLLAB_EVENTS__VALIDATION", "strict")
    environment.setenv("COLLAB_EVENTS__SCHEMA_DIR", str(tmp_path))
    file = tmp_path / "price_alert.json"
    file.write_text("{}")
    assert run("config", "check") == (0, "ok\n", "")
    file.write_text('{"type": "thing"}')
    code, output, errors = run("config", "check")
    assert (code, output) == (2, "")
    assert errors.startswith(f"trio-collab: events.schema_dir: {file}: type: ")
    assert errors.count("\n") == 1


def test_the_schema_on_the_page_is_one(tmp_path):
    (example,) = re.findall(r"^```json\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "price_alert.json").write_text(example)
    settings = Settings(events=EventSettings(validation="strict", schema_dir=str(tmp_path)))
    rules = EventRules.from_settings(settings)
    payloads = {
        b'{"symbol":"ACME","chart_url":"https://example.org/acme"}': True,
        b'{"symbol":"acme"}': False,
        b'{"symbol":"ACME","chart_url":"acme"}': False,
        b"{}": False,
    }
    for payload, fits in payloads.items():
        event = RouteRequest(CollabEvent("price_alert", [], data=msgspec.Raw(payload)))
        with nullcontext() if fits else pytest.raises(InvalidEvent):
            rules.check(event, "ada")


def test_a_file_that_is_missing_is_one_line_and_exit_code_2(run, tmp_path):
    missing = tmp_path / "missing.toml"
    for command in (["config", "check"], ["config", "show"], ["serve"]):
        code, output, errors = run(*command, "--config", str(missing))
        assert (code, output) == (2, "")
        assert errors == f"trio-collab: cannot read the config file {missing}: No such file or directory\n"


@pytest.mark.parametrize("name", ["a\nb.toml", "a\x1b[31mb.toml"])
def test_a_message_stays_one_line_whatever_it_quotes(run, tmp_path, name):
    _, _, errors = run("config", "check", "--config", str(tmp_path / name))
    assert errors.count("\n") == 1
    assert "\x1b" not in errors


@pytest.mark.parametrize(
    "arguments",
    [["nothing"], ["config", "nothing"], ["serve", "--nothing"], ["serve", "--port"], ["serve", "extra"]],
)
def test_wrong_usage_is_one_line_and_exit_code_2(run, arguments):
    code, output, errors = run(*arguments)
    assert (code, output) == (2, "")
    assert errors.startswith("trio-collab: ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "x"],
        ["--port", "-1"],
        ["--host", ""],
        ["--log-level", "loud"],
        ["--log-format", "xml"],
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(run, arguments):
    code, output, errors = run("serve", *arguments)
    assert (code, output) == (2, "")
    assert re.fullmatch(rf"trio-collab: [a-z.]+ \(flag {arguments[0]}\): expected .+\n", errors)


def test_no_arguments_show_the_help_as_wrong_usage(run):
    code, output, errors = run()
    assert code == 2
    assert "serve" in output + errors


def test_the_version_is_shown(run):
    assert run("--version") == (0, f"trio-collab {collab.__version__}\n", "")


def test_the_help_of_serve_names_every_setting_and_every_flag():
    shown = CliRunner().invoke(program, ["serve", "--help"], terminal_width=200).output
    for option in options_of(Settings):
        assert re.search(rf"^ +{re.escape(option.path)} ", shown, re.MULTILINE), option.path
        assert option.flag is None or f"{option.flag} " in shown
    assert {"--config", "--reload"} <= set(re.findall("--[a-z-]+", shown))


def test_the_page_on_configuration_is_what_the_command_prints(run):
    assert run("config", "docs") == (0, configuration_page(), "")
    assert PAGE.read_text() == configuration_page(), "run: trio-collab config docs > docs/configuration.md"


def test_the_page_on_configuration_names_every_setting_variable_and_flag():
    page = PAGE.read_text()
    for option in options_of(Settings):
        assert f"| `{option.path}` | `{option.variable}`" in page
        assert option.flag is None or f"`{option.flag}`" in page


def test_the_example_on_the_page_is_valid(tmp_path):
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    file = tmp_path / "example.toml"
    file.write_text(example)
    assert load_settings(file, {}, {}).server.port == 9100


def test_every_command_and_flag_has_a_help_text():
    def commands(group):
        for command in group.commands.values():
            yield command
            if isinstance(command, click.Group):
                yield from commands(command)

    for command in commands(program):
        assert command.help, command.name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (command.name, parameter.name)
