"""``optiq completion``: the script that makes a shell complete commands, options, and the daemon's names."""

from __future__ import annotations

import click

VARIABLE = "_OPTIQ_COMPLETE"


@click.command(
    epilog="\b\nExamples:\n"
    "  optiq completion bash > ~/.local/share/bash-completion/completions/optiq\n"
    '  eval "$(optiq completion zsh)"                  # in ~/.zshrc, after compinit\n'
    "  optiq completion fish > ~/.config/fish/completions/optiq.fish"
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    Names of adapters and jobs come from the running daemon; if it does not answer within a second, none are offered.
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None
    # The script and not `source()`: that one runs bash to ask its version.
    script = made(ctx.find_root().command, {}, "optiq", VARIABLE)
    click.echo(made.source_template % script.source_vars())
