"""`llamatui pull`: models from the Hugging Face hub, by name."""

import sys
from typing import Annotated

import typer

from llamatui.app import catalogue, store
from llamatui.app.cli import options
from llamatui.app.cli.terminal import Interrupted, short_count


def complete_target() -> list[tuple[str, str]]:
    return [(entry.name, entry.about) for entry in (*catalogue.MODELS, *catalogue.TOKENIZERS)]


def pull(
    target: Annotated[
        str | None,
        typer.Argument(
            help="A name of the catalogue, or a repository, or one .gguf or .bin in it; none shows the "
            "catalogue.",
            metavar="NAME|REPO[:FILE]",
            autocompletion=complete_target,
        ),
    ] = None,
    version: options.Version = None,
    group_size: options.GroupSize = None,
    force: Annotated[
        bool, typer.Option("--force", help="Pull it again, or in the place of another of its name.")
    ] = False,
) -> None:
    """Get a model from the Hugging Face hub, ready to run by its name.

    A .bin is kept as it is, unless a version or group size is asked for.

    Example: llamatui pull stories15M, then: llamatui story stories15M
    """
    if target is None:
        show_catalogue()
        return
    from llamatui.app.cli.progress import progress_bar
    from llamatui.app.pull import parse
    from llamatui.app.pull import pull as pull_model

    wanted = parse(target)  # a wrong target is told before anything is drawn
    name = wanted.name
    try:
        with progress_bar(name) as bar:
            pulled = pull_model(
                target,
                version=version,
                group_size=group_size,
                force=force,
                progress=bar,
                step=lambda step: bar.step(f"{step} {name}"),
            )
    except Interrupted:
        print(f"stopped; llamatui pull {target} goes on from here", file=sys.stderr)
        raise
    for note in pulled.notes:
        print(f"note: {note}", file=sys.stderr)
    if not pulled.is_new:
        print(f"{pulled.name} is here already: {pulled.path} (--force pulls it again)", file=sys.stderr)
    else:
        print(f"pulled to {pulled.path}", file=sys.stderr)
    if isinstance(wanted, catalogue.Tokenizer):
        return
    from llamatui.backends.checkpoint import Checkpoint
    from llamatui.tokenizers.chat_formats import CHAT_FORMATS

    room = "chat" if Checkpoint(pulled.path).config.chat_format in CHAT_FORMATS else "story"
    print(f"  try: llamatui {room} {pulled.name}", file=sys.stderr)


def show_catalogue() -> None:
    from rich.filesize import decimal as size

    from llamatui.app.cli.models import print_table

    here = {model.name.casefold() for model in store.list_models()}
    here |= {path.stem.casefold() for path in store.tokenizers_folder().glob("*")}
    rows = []
    for entry in (*catalogue.MODELS, *catalogue.TOKENIZERS):
        licence = entry.licence + (", gated" if entry.gated else "")
        params = short_count(entry.parameters) if isinstance(entry, catalogue.Model) else ""
        mark = "here" if entry.name.casefold() in here else ""
        rows.append((entry.name, params, size(entry.size), licence, mark))
    print_table(("name", ">params", ">download", "licence", ""), rows)
    print("\nllamatui pull NAME, or any repository of the hub: OWNER/NAME[:FILE]", file=sys.stderr)
