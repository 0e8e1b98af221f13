"""Owns `trio-collab completion`: the script with which a shell completes commands and flags."""

from __future__ import annotations

import click

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print the script that completes commands and flags in SHELL.

    \b
    bash  eval "$(trio-collab completion bash)" in ~/.bashrc
    zsh   eval "$(trio-collab completion zsh)" in ~/.zshrc
    fish  trio-collab completion fish > ~/.config/fish/completions/trio-collab.fish
    """
    from click.shell_completion import get_completion_class

    from collab.cli.command import program

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(program, {}, "trio-collab", "_TRIO_COLLAB_COMPLETE").source())
