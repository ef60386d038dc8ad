"""Commands that are typed: what there is, what was meant, and how it is completed. No screen here."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    help: str
    argument: str = ""
    """How it is called in the help; "" where there is none."""
    needed: bool = False
    """Whether nothing happens without it."""


COMMANDS = {
    command.name: command
    for command in (
        Command("help", "all keys and commands"),
        Command("system", "who the model shall be", "TEXT"),
        Command("set", "temperature, top_p, seed and the like", "NAME VALUE", needed=True),
        Command("model", "talk to another model"),
        Command("backend", "compute with another engine", "NAME", needed=True),
        Command("retry", "another answer; the old one stays beside it"),
        Command("continue", "let the last answer go on"),
        Command("edit", "change your last message and ask again"),
        Command("undo", "back to the branch before"),
        Command("redo", "undo the undo"),
        Command("copy", "the last answer", "code"),
        Command("compare", "answer with two engines or settings side by side"),
        Command("save", "the whole chat, all branches, as JSON", "FILE.json"),
        Command("export", "what is shown, to read", "FILE.md"),
        Command("clear", "begin anew; /undo brings this chat back"),
        Command("new", "the same as /clear"),
        Command("theme", "other colours", "NAME", needed=True),
        Command("quit", "leave"),
    )
}


@dataclass(frozen=True, slots=True)
class Suggestion:
    text: str
    """What the whole line becomes."""
    label: str
    help: str
    complete: bool
    """Whether nothing more must be typed."""


Values = Callable[[str, str], Iterable[tuple[str, str]]]
"""(command, what was typed behind it) -> (value, help) of what could stand there."""


def parse(text: str) -> tuple[str, str]:
    """(name, argument) of a command."""
    name, _, argument = text.removeprefix("/").partition(" ")
    if "\n" in name:  # the argument begins on a line of its own
        name, _, rest = name.partition("\n")
        argument = f"{rest} {argument}" if argument else rest
    return name.strip().lower(), argument.strip()


def is_command(text: str) -> bool:
    """Whether a line that begins with a typed slash is meant as a command."""
    return text.startswith("/") and not text.startswith(("//", "/ "))


def message(text: str) -> str:
    """What is said by a text that is no command: `//` at its beginning stands for a slash."""
    return text[1:] if text.startswith("//") else text


def suggestions(text: str, values: Values) -> list[Suggestion]:
    """What `text` could become."""
    if not is_command(text) or "\n" in text:
        return []
    typed, space, argument = text[1:].partition(" ")
    typed = typed.lower()
    if not space:
        begins = [command for name, command in COMMANDS.items() if name.startswith(typed)]
        inside = [command for name, command in COMMANDS.items() if typed in name and command not in begins]
        return [
            Suggestion(
                f"/{command.name} " if command.argument else f"/{command.name}",
                f"/{command.name} {command.argument}".rstrip(),
                command.help,
                not command.needed and command.argument in ("", "code"),
            )
            for command in begins + inside
        ]
    if typed not in COMMANDS:
        return []
    argument = argument.lstrip()
    found = [
        (value, about)
        for value, about in values(typed, argument)
        if value.lower().startswith(argument.lower())
    ]
    return [
        Suggestion(f"/{typed} {value}", value, about, not value.endswith(" "))
        for value, about in found
        if value != argument
    ]
