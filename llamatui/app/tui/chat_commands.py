"""What the chat room does when a command is typed, and what can stand behind each."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from llamatui.app.tui import slash
from llamatui.app.tui.bars import one_line
from llamatui.app.tui.replaying import SUFFIX
from llamatui.app.tui.sampling_panel import SETTINGS, SamplingPanel
from llamatui.app.tui.slash import Command, Suggestion
from llamatui.app.tui.themes import NAMES
from llamatui.errors import LlamatuiError, UsageError

if TYPE_CHECKING:
    from llamatui.app.sampling import Sampling
    from llamatui.app.tui.app import LlamaApp
    from llamatui.app.tui.chat_room import ChatRoom


class ChatCommands:
    def __init__(self, room: "ChatRoom") -> None:
        self.room = room

    @property
    def app(self) -> "LlamaApp":
        return cast("LlamaApp", self.room.app)

    # Completion.

    def suggestions(self, text: str) -> list[Suggestion]:
        """What `text` could become."""
        return slash.suggestions(text, COMMANDS, self.values)

    def values(self, command: str, argument: str) -> Iterator[tuple[str, str]]:
        """(value, help) of what can stand behind a command."""
        match command:
            case "set":
                yield from self._settings(argument)
            case "backend":
                from llamatui.backends.registry import backend_names

                model = self.room.model
                now = model.backend.name if model else ""
                for name in backend_names():
                    yield name, "runs now" if name == now else ""
            case "model":
                from llamatui.app.store import list_models

                for stored in list_models():
                    yield stored.name, ""
            case "theme":
                for name in NAMES:
                    yield name, "now" if name == self.app.theme else ""
            case "copy":
                yield "code", "the code in it; again: the next block"
            case "save" | "export":
                if not argument:
                    yield self._file_name(".json" if command == "save" else ".md"), "a name that is free"

    def _settings(self, argument: str) -> Iterator[tuple[str, str]]:
        sampling = self._sampling
        name, space, value = argument.partition(" ")
        if not space:
            for setting, about in SETTINGS.items():
                yield f"{setting} ", f"{getattr(sampling, setting):<6g} " + about.meaning.replace("\n", " ")
            yield "seed ", f"{sampling.seed or 'random':<6} the same seed gives the same words"
        elif not value and name in (*SETTINGS, "seed"):
            value = getattr(sampling, name)
            yield f"{name} {value if isinstance(value, int) else f'{value:g}'}", "as it is now"

    @property
    def _sampling(self) -> "Sampling":
        return self.room.query_one(SamplingPanel).sampling

    def _file_name(self, end: str) -> str:
        from llamatui.app.chat_export import free_name

        return free_name(self.room.conversation, end) if self.room.conversation else ""

    # Execution.

    async def execute(self, text: str) -> bool:
        """Does what `text` says; False if it cannot be done."""
        room = self.room
        name, argument = slash.parse(text)
        command = COMMANDS.get(name)
        if command is None:
            room.notify(
                f"There is no command /{one_line(name)}. "
                "/help lists them; // at the beginning is just a slash.",
                severity="warning", markup=False,
            )  # fmt: skip
            return False
        if argument and not command.argument:  # a message, maybe: "/quit smoking"
            room.notify(
                f"/{name} takes nothing behind it. // at the beginning is just a slash.",
                severity="warning", markup=False,
            )  # fmt: skip
            return False
        if command.needed and not argument:
            room.composer.give_back(f"/{name} ", command=True)
            return True
        if command.waits and room.busy:
            room.tell_to_wait("then this can be done")
            return False
        if room.conversation is None and not command.anytime:
            room.notify("The model is not open yet.")
            return False
        if command.needs_turns and not (room.conversation and room.conversation.turns):
            room.notify("There is no chat yet.")
            return False
        try:
            if (doing := command.do(self, argument)) is not None:
                await doing
        except LlamatuiError as error:
            room.tell(error)
            return False
        return True

    def system(self, argument: str) -> None:
        if argument:
            self.room.set_system(argument)
        else:
            self.room.action_system()

    def set(self, argument: str) -> None:
        name, _, text = argument.partition(" ")
        name, text = name.replace("-", "_").lower(), text.strip()
        if name not in (*SETTINGS, "seed"):
            raise UsageError(f"there is no setting {name!r}", f"choose {', '.join((*SETTINGS, 'seed'))}")
        try:
            value: Any = int(text) if name in ("seed", "top_k") else float(text)
        except ValueError:
            raise UsageError(f"{name}: expected a number, found {text!r}") from None
        replace(self._sampling, **{name: value})  # says what is out of range
        self.room.query_one(SamplingPanel).put(name, value)
        if name == "seed":
            self.room.notify("The seed is set." if value else "The seed is a new one each time.")
        else:
            self.room.notify(f"{name} is {text} from the next word on.", markup=False)

    def backend(self, argument: str) -> None:
        from llamatui.backends.registry import backend_names

        if argument not in backend_names():
            raise UsageError(f"no backend is called {argument!r}", f"choose {', '.join(backend_names())}")
        self.app.action_switch_backend(argument)

    def edit(self) -> None:
        assert self.room.conversation is not None
        asked = [turn for turn in self.room.conversation.tree.path if turn.message.role == "user"]
        self.room.edit(asked[-1])

    def copy(self, argument: str) -> None:
        if argument not in ("", "code"):
            raise UsageError(f"expected code or nothing behind /copy, found {one_line(argument)!r}")
        item = self.room.transcript.last_turn("assistant")
        if argument and item:
            self.room.copy_code(item)
        else:
            self.room.action_copy()

    async def write(self, command: str, argument: str) -> None:
        from llamatui.app import chat_export

        conversation = self.room.conversation
        assert conversation is not None
        if not argument:
            end = ".json" if command == "save" else ".md"
            self.room.composer.give_back(f"/{command} {self._file_name(end)}", command=True)
            self.room.notify("Enter writes it, to this folder; or give it another name.")
            return
        if command == "export" and argument.lower().endswith(SUFFIX):
            try:
                path = await self.room.replaying.write(argument)
            except FileExistsError as error:
                raise UsageError(f"{error} is there already", "choose another name") from None
        else:
            write = chat_export.save if command == "save" else chat_export.export
            path = write(conversation, self._sampling, argument)
        self.room.notify(f"Written to {one_line(str(path))}", markup=False)

    def theme(self, argument: str) -> None:
        if argument not in self.app.available_themes:
            raise UsageError(f"no theme is called {argument!r}", f"choose {', '.join(NAMES)}")
        self.app.theme = argument


COMMANDS = {
    command.name: command
    for command in (
        Command("help", "all keys and commands", lambda it, _: it.app.action_help(), anytime=True),
        Command("system", "who the model shall be", ChatCommands.system, "[TEXT]", waits=True),
        Command(
            "set", "temperature, top_p, seed and the like", ChatCommands.set, "NAME VALUE", anytime=True,
        ),
        Command(
            "model", "talk to another model", lambda it, name: it.app.action_pick_model(name), "[NAME]",
            anytime=True,
        ),
        Command("backend", "compute with another engine", ChatCommands.backend, "NAME"),
        Command(
            "retry", "another answer; the old one stays beside it",
            lambda it, _: it.room.action_regenerate(), waits=True, needs_turns=True,
        ),
        Command(
            "continue", "let the last answer go on",
            lambda it, _: it.room.action_resume(), waits=True, needs_turns=True,
        ),
        Command(
            "edit", "change your last message and ask again",
            lambda it, _: it.edit(), waits=True, needs_turns=True,
        ),
        Command("undo", "back to the branch before", lambda it, _: it.room.action_undo(), waits=True),
        Command("redo", "undo the undo", lambda it, _: it.room.action_redo(), waits=True),
        Command("copy", "the last answer", ChatCommands.copy, "[code]", needs_turns=True),
        Command(
            "compare", "answer with two engines or settings side by side",
            lambda it, _: it.app.action_compare(), waits=True,
        ),
        Command(
            "save", "the whole chat, all branches, as JSON",
            lambda it, name: it.write("save", name), "[FILE.json]", waits=True, needs_turns=True,
        ),
        Command(
            "export", "what is shown, to read; as .replay, to play and compute again",
            lambda it, name: it.write("export", name), "[FILE.md]", waits=True, needs_turns=True,
        ),
        Command("history", "older chats", lambda it, _: it.app.action_history(), anytime=True),
        Command(
            "clear", "begin anew; /undo brings this chat back",
            lambda it, _: it.room.action_new(), waits=True, needs_turns=True,
        ),
        Command("theme", "other colours", ChatCommands.theme, "NAME", anytime=True),
        Command("quit", "leave", lambda it, _: it.app.action_quit(), anytime=True),
    )
}  # fmt: skip
