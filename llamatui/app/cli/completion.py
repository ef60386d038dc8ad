"""`llamatui completion`: the script that teaches a shell our commands."""

from typing import Annotated

import typer

from llamatui.errors import UsageError

COMPLETE_VARIABLE = "_LLAMATUI_COMPLETE"
SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")


def completion(shell: Annotated[str, typer.Argument(help=f"One of: {', '.join(SHELLS)}.")]) -> None:
    """Print a completion script, for example: eval "$(llamatui completion bash)"."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    if shell not in SHELLS:
        raise UsageError(f"no completion for {shell!r}", f"choose one of: {', '.join(SHELLS)}")
    typer.echo(get_completion_script(prog_name="llamatui", complete_var=COMPLETE_VARIABLE, shell=shell))
