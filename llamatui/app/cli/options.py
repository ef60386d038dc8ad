"""Options that several commands share. None means "not given": see `llamatui.app.config.resolve`.

Short flags follow llama2.c. Nothing heavy is imported here.
"""

from pathlib import Path
from typing import Annotated

import typer


def complete_backend() -> list[str]:
    from llamatui.backends.registry import backend_names

    return backend_names()


def complete_model(incomplete: str) -> list[str]:
    """Models by name, and files that can be run; where nothing fits, the shell completes file names."""
    from llamatui.app.store import complete_names

    begin = Path(incomplete)
    folder = begin if incomplete.endswith("/") else begin.parent
    start = "" if incomplete.endswith("/") else begin.name
    prefix = incomplete[: len(incomplete) - len(start)]
    files = [path for end in ("*.bin", "*.gguf") for path in folder.glob(end) if path.name.startswith(start)]
    return [*complete_names(incomplete), *sorted(prefix + path.name for path in files)]


# Text, since a Path forgets the "./" that tells a file from a name.
Model = Annotated[
    str | None,
    typer.Argument(
        help="A .bin or .gguf file, or a model's name; default: the setting `model`, else `stories`, which "
        "comes with llamatui.",
        autocompletion=complete_model,
    ),
]
InstructModel = Annotated[
    str | None,
    typer.Argument(
        help="A .bin or .gguf file, or a pulled model's name; default: the setting `model`.",
        autocompletion=complete_model,
    ),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option("-z", "--tokenizer", help="Tokenizer file; default: looked for next to the model."),
]
Backend = Annotated[
    str | None,
    typer.Option(
        help="numba (fp32), q8_0 (int8) or numpy; default: q8_0 for version 2, else numba.",
        autocompletion=complete_backend,
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Threads; default: one per physical core.")
]
ChatFormat = Annotated[
    str | None, typer.Option(help="llama2, llama3, chatml or zephyr; default: what the model says.")
]
System = Annotated[
    str | None,
    typer.Option("-y", "--system", help='System prompt; "" is none; default in chat: the model\'s own.'),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "-t", "--temperature", help="0 takes the likeliest token; default: 1.0, in the story room 0.8."
    ),
]
TopP = Annotated[
    float | None, typer.Option("-p", "--top-p", help="Nucleus sampling, 0 or 1 is off; default: 0.9.")
]
Seed = Annotated[int | None, typer.Option("-s", "--seed", help="Random seed; default: 0, which picks one.")]
TopK = Annotated[int | None, typer.Option(help="Keeps the k likeliest tokens; default: 0, off.")]
MinP = Annotated[
    float | None, typer.Option(help="Drops tokens below this fraction of the likeliest; default: 0, off.")
]
RepeatPenalty = Annotated[
    float | None, typer.Option(help="Makes recent tokens less likely; default: 1, off.")
]
Context = Annotated[
    int | None, typer.Option(min=2, help="Most tokens to hold; default: all that the model can.")
]
Overflow = Annotated[
    str | None,
    typer.Option(
        help="Full context: stop, shift (forget the oldest) or error; default: stop, in chat shift."
    ),
]
Theme = Annotated[
    str | None,
    typer.Option(
        help="dark, light or contrast; default: dark.", autocompletion=lambda: ["dark", "light", "contrast"]
    ),
]
Last = Annotated[bool, typer.Option("-c", "--continue", help="Go on with the last one in the history.")]
Reopened = Annotated[
    str, typer.Option("--open", metavar="ID", help="Go on with that one: see llamatui history list.")
]
Version = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=2,
        help="0 and 1 are fp32, 2 is Q8_0; default: 1, but 2 above 1 GiB or for Q8_0 sources.",
    ),
]
GroupSize = Annotated[
    int | None, typer.Option(min=1, help="Weights per scale in version 2; default: the source's, or 64.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
