"""Commands that are typed: what was meant, and how it is completed. No screen here."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamatui.app.tui.chat_commands import ChatCommands


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    help: str
    do: "Callable[[ChatCommands, str], Awaitable[None] | None]"
    """Called with what stands behind the name."""
    argument: str = ""
    """How that is called in the help, in brackets where it may be left out; "" where there is none."""
    waits: bool = False
    """Whether it has to wait until an answer has ended."""
    needs_turns: bool = False
    anytime: bool = False
    """Whether it can be done before there is a model."""

    @property
    def needed(self) -> bool:
        """Whether nothing happens without an argument."""
        return bool(self.argument) and not self.argument.startswith("[")


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


def suggestions(text: str, commands: Mapping[str, Command], values: Values) -> list[Suggestion]:
    """What `text` could become."""
    if not is_command(text) or "\n" in text:
        return []
    typed, space, argument = text[1:].partition(" ")
    typed = typed.lower()
    if not space:
        begins = [command for name, command in commands.items() if name.startswith(typed)]
        inside = [command for name, command in commands.items() if typed in name and command not in begins]
        return [
            Suggestion(
                f"/{command.name} " if command.argument else f"/{command.name}",
                f"/{command.name} {command.argument}".rstrip(),
                command.help,
                not command.needed,
            )
            for command in begins + inside
        ]
    if typed not in commands:
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
