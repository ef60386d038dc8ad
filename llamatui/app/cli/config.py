"""`llamatui config`: where the settings are, and what they amount to."""

from dataclasses import asdict

import typer

from llamatui.app.cli.options import Json
from llamatui.app.config import config_path, resolve

app = typer.Typer(no_args_is_help=True)


@app.command()
def path() -> None:
    """Print the path of config.toml, whether it exists or not."""
    typer.echo(config_path())


@app.command()
def show(json: Json = False) -> None:
    """Print every setting, its value and where it came from."""
    import json as json_library

    settings, sources = resolve()
    if json:
        rows = {name: {"value": value, "source": sources[name]} for name, value in asdict(settings).items()}
        typer.echo(json_library.dumps(rows, indent=2))
        return
    rows = asdict(settings)
    keys = rows.pop("keys")
    if keys:
        from llamatui.app.tui.keys import keymap_from

        keymap_from(keys)
    for name, value in rows.items():
        typer.echo(f"{name} = {json_library.dumps(value)}  # {sources[name]}")
    if keys:  # last: what follows a table in TOML belongs to it
        typer.echo(f"\n[keys]  # {sources['keys']}")
        for name, value in keys.items():
            typer.echo(f"{json_library.dumps(name)} = {json_library.dumps(value)}")
