"""Owns the command line: its commands, their flags, and what they say when they fail."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from collab._version import __version__
from collab.cli.bench import bench
from collab.cli.completion import completion
from collab.cli.doctor import doctor
from collab.cli.flags import config_flag
from collab.cli.health import health
from collab.cli.listen import listen
from collab.cli.pages import configuration_page, settings_as_toml, settings_overview
from collab.cli.send import send
from collab.cli.token import token
from collab.cli.top import top
from collab.cli.users import users
from collab.errors import CollabError, SettingsError
from collab.settings import Settings, load_settings, options_of, read_settings, unsafe_combinations
from collab.settings.loading import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

F = TypeVar("F", bound="Callable[..., Any]")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command with `arguments`, or those of the process, and exit.

    Every failure is one line on stderr, `trio-collab: …`.
    """
    try:
        result = program.main(arguments, prog_name="trio-collab", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 1)
    except CollabError as error:
        _fail(str(error), 2 if isinstance(error, SettingsError) else 1)
    sys.exit(result if isinstance(result, int) else 0)


class ServeCommand(click.Command):
    """A command whose help lists every setting below its flags."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Settings, in a TOML file or as environment variables"):
            formatter.write_dl(settings_overview())
        super().format_epilog(ctx, formatter)


def _setting_flags(command: F) -> F:
    for option in reversed(options_of(Settings)):
        if option.flag is not None:
            command = click.option(
                option.flag,
                option.path.replace(".", "__"),
                metavar=option.metavar,
                help=f"{option.help}  [default: {option.default}]",
            )(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="trio-collab", message="%(prog)s %(version)s")
def program() -> None:
    """Route events between collaborating Portfolio Planner backends."""


@program.command(cls=ServeCommand)
@_setting_flags
@config_flag
@click.option("--reload", is_flag=True, help="Restart when the code or the config file changes.")
@click.option("--until-eof", is_flag=True, hidden=True, help="Drain when standard input ends.")
def serve(config_file: Path | None, reload: bool, until_eof: bool, **flags: str | None) -> int:
    """Run the service until SIGTERM or SIGINT; a second one ends it at once.

    A flag is stronger than the environment, the environment stronger than the config file.
    SIGHUP opens the log file and the audit log anew, and reads the TLS certificate anew.
    """
    if reload:
        from collab.cli.reload import run_reloading

        return run_reloading(_serve_arguments(config_file, flags), config_file)
    given = {name.replace("__", "."): value for name, value in flags.items()}
    settings = load_settings(config_file, os.environ, given)

    # Trio and the web stack load here, so that the other commands and wrong settings answer at once.
    from collab.cli.running import run_service

    return run_service(settings, until_eof=until_eof)


for command in (bench, token, send, listen, users, top, health, doctor, completion):
    program.add_command(command)


@program.group()
def config() -> None:
    """Look at the settings without starting the service."""


@config.command()
@config_flag
def show(config_file: Path | None) -> None:
    """Print the effective settings as TOML, with the source of each; secrets are masked."""
    click.echo(settings_as_toml(read_settings(Settings, config_file, os.environ, {})), nl=False)


@config.command()
@config_flag
def check(config_file: Path | None) -> None:
    """Check the settings: print `ok`, or the first mistake, with warnings of what is not safe together."""
    settings = load_settings(config_file, os.environ, {})

    from collab.edge.tls import Tls
    from collab.policy.auth import Authenticator
    from collab.policy.sending import send_policy
    from collab.policy.validation import EventRules

    Authenticator(settings.auth)
    send_policy(settings.policy, settings.auth.mode)
    EventRules.from_settings(settings)
    Tls.from_settings(settings.tls)
    for warning in unsafe_combinations(settings):
        click.echo(f"warning: {printable(warning)}", err=True)
    click.echo("ok")


@config.command(hidden=True)
def docs() -> None:
    """Print docs/configuration.md."""
    click.echo(configuration_page(), nl=False)


def _serve_arguments(config_file: Path | None, flags: dict[str, str | None]) -> list[str]:
    by_name = {option.path.replace(".", "__"): option.flag for option in options_of(Settings)}
    arguments = [f"{by_name[name]}={value}" for name, value in flags.items() if value is not None]
    if config_file is not None:
        arguments.append(f"--config={config_file}")
    return arguments


def _fail(message: str, exit_code: int) -> NoReturn:
    click.echo(f"trio-collab: {printable(message)}", err=True)
    sys.exit(exit_code)
