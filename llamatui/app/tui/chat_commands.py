"""What the chat room does when a command is typed, and what can stand behind each."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llamatui.app.tui import slash
from llamatui.app.tui.sampling_panel import SETTINGS, SamplingPanel
from llamatui.app.tui.themes import NAMES
from llamatui.errors import LlamatuiError, UsageError

if TYPE_CHECKING:
    from llamatui.app.sampling import Sampling
    from llamatui.app.tui.chat_room import ChatRoom

WAITING = {"system", "retry", "continue", "edit", "undo", "redo", "clear", "new", "compare", "save", "export"}
"""What waits until an answer has ended."""
NEEDING_TURNS = {"retry", "continue", "edit", "copy", "save", "export", "clear", "new"}


class ChatCommands:
    def __init__(self, room: "ChatRoom") -> None:
        self.room = room

    # Completion.

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
                    yield name, "now" if name == self.room.app.theme else ""
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
            yield f"{name} {getattr(sampling, name):g}", "as it is now"

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
        command = slash.COMMANDS.get(name)
        if command is None:
            room.notify(
                f"There is no command /{name}. /help lists them; // at the beginning is just a slash.",
                severity="warning", markup=False,
            )  # fmt: skip
            return False
        if command.needed and not argument:
            room.composer.give_back(f"/{name} ", command=True)
            return True
        if name in WAITING and room.busy:
            room.notify("Esc stops the answer, then this can be done.")
            return False
        if room.conversation is None and name not in ("help", "theme", "quit", "model", "set"):
            room.notify("The model is not open yet.")
            return False
        if name in NEEDING_TURNS and not (room.conversation and room.conversation.turns):
            room.notify("There is no chat yet.")
            return False
        try:
            await getattr(self, f"do_{name}")(argument)
        except LlamatuiError as error:
            room.tell(error)
            return False
        return True

    async def do_help(self, _: str) -> None:
        self.room.action_toggle_help()

    async def do_system(self, argument: str) -> None:
        if argument:
            self.room.set_system(argument)
        else:
            self.room.action_system()

    async def do_set(self, argument: str) -> None:
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
        self.room.notify(
            f"{name} is {value:g} from the next word on." if name != "seed" else "The seed is set."
        )

    async def do_model(self, argument: str) -> None:
        await self._app_action("pick_model", argument)

    async def do_backend(self, argument: str) -> None:
        from llamatui.backends.registry import backend_names

        if argument not in backend_names():
            raise UsageError(f"no backend is called {argument!r}", f"choose {', '.join(backend_names())}")
        await self._app_action("switch_backend", argument)

    async def do_compare(self, _: str) -> None:
        await self._app_action("compare")

    async def _app_action(self, name: str, *arguments: str) -> None:
        await self.room.run_action(f"app.{name}({', '.join(map(repr, filter(None, arguments)))})")

    async def do_retry(self, _: str) -> None:
        await self.room.action_regenerate()

    async def do_continue(self, _: str) -> None:
        await self.room.action_resume()

    async def do_edit(self, _: str) -> None:
        assert self.room.conversation is not None
        asked = [turn for turn in self.room.conversation.tree.path if turn.message.role == "user"]
        self.room.edit(asked[-1])

    async def do_undo(self, _: str) -> None:
        await self.room.action_undo()

    async def do_redo(self, _: str) -> None:
        await self.room.action_redo()

    async def do_copy(self, argument: str) -> None:
        item = self.room.transcript.last_turn("assistant")
        if argument == "code" and item:
            self.room.copy_code(item)
        else:
            self.room.action_copy()

    async def do_save(self, argument: str) -> None:
        self._write("save", argument)

    async def do_export(self, argument: str) -> None:
        self._write("export", argument)

    def _write(self, command: str, argument: str) -> None:
        from llamatui.app import chat_export

        conversation = self.room.conversation
        assert conversation is not None
        if not argument:
            end = ".json" if command == "save" else ".md"
            self.room.composer.give_back(f"/{command} {self._file_name(end)}", command=True)
            self.room.notify("Enter writes it, to this folder; or give it another name.")
            return
        write = chat_export.save if command == "save" else chat_export.export
        path = write(conversation, self._sampling, argument)
        self.room.notify(f"Written to {path}", markup=False)

    async def do_clear(self, _: str) -> None:
        await self.room.action_new()

    async def do_new(self, _: str) -> None:
        await self.room.action_new()

    async def do_theme(self, argument: str) -> None:
        known = self.room.app.available_themes
        if argument not in known:
            raise UsageError(f"no theme is called {argument!r}", f"choose {', '.join(NAMES)}")
        self.room.app.theme = argument

    async def do_quit(self, _: str) -> None:
        await self.room.app.action_quit()
