"""The app: loads the model while the room is already there, shows errors, switches rooms."""

import gc
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, get_args

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.timer import Timer

from llamatui.app import catalogue
from llamatui.app.tui.error_screen import ErrorChoice, ErrorScreen
from llamatui.app.tui.launch import Launch, RoomName
from llamatui.app.tui.loading import Loading
from llamatui.app.tui.messages import LoadFailed, LoadStep, ModelReady
from llamatui.app.tui.room import Room
from llamatui.app.tui.runner import Runner
from llamatui.app.tui.themes import DARK, LIGHT
from llamatui.errors import LlamatuiError, TokenizerMissingError, UsageError

if TYPE_CHECKING:
    from llamatui.app.model import LoadedModel

ENGINE_CHECKS_PER_SECOND = 10


class LlamaApp(App[None]):
    TITLE = "llamatui"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+q", "app.quit", "quit", priority=True)]
    CSS = """
    ToastRack { align: right top; margin-top: 2; }
    HelpPanel #widget-help { max-height: 75%; }
    """

    def __init__(self, room: RoomName, options: Launch) -> None:
        """
        Raises:
            UsageError: There is no such theme.
        """
        # The room is there from the first paint on, without an empty screen before it.
        self.DEFAULT_MODE = room  # type: ignore[misc]
        super().__init__()
        self.options = options
        self.runner = Runner()
        self.model: LoadedModel | None = None
        self._watch: Timer | None = None  # while a faster engine is on its way
        self._exit_code = 0
        for name in get_args(RoomName):
            # The prompt is for the room that was asked for.
            launch = options if name == room else replace(options, prompt="")
            self.add_mode(name, partial(make_room, name, launch, self.runner))
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        if options.theme not in self.available_themes:
            raise UsageError(f"no theme is called {options.theme!r}", "choose dark or light")
        self.theme = options.theme

    @property
    def room(self) -> Room:
        """The room, also while something lies over it."""
        return next(screen for screen in self.screen_stack if isinstance(screen, Room))

    def on_ready(self) -> None:
        # After the first paint: the engine's imports would hold it up.
        self.call_after_refresh(self._load)

    def _load(self, pull: str = "") -> None:
        gc.enable()  # see run_app
        self.runner.submit(Loading(self, self.runner, self.options, pull))

    def on_load_step(self, message: LoadStep) -> None:
        if self.screen_stack:  # else the app is closing
            self.room.show_step(message.step)

    def on_model_ready(self, message: ModelReady) -> None:
        self.model = message.model
        if self.screen_stack:
            self._open(message.model)
            self._watch = self.set_interval(1 / ENGINE_CHECKS_PER_SECOND, self._watch_engine)
            self._watch_engine()

    def on_load_failed(self, message: LoadFailed) -> None:
        if self.screen_stack:
            self._fail(f"{Path(self.options.model).name} cannot be opened", message.error)

    def _open(self, model: "LoadedModel") -> None:
        try:
            self.room.open(model)
        except LlamatuiError as error:
            self._fail(f"{model.name} cannot chat", error, story_instead=True)

    def _watch_engine(self) -> None:
        """Shows the engine that was on its way as soon as it is there, and says why nothing faster runs."""
        assert self.model is not None
        assert self._watch is not None
        if self.model.backend.preparing:
            return
        self._watch.stop()
        self._show_engine()
        for warning in self.model.warnings:
            self.notify(warning, title="Slower than it could be", severity="warning", markup=False)

    def _show_engine(self) -> None:
        if self.room.model is not None:
            self.room.show_engine()

    def _fail(self, title: str, error: Exception, *, story_instead: bool = False) -> None:
        """Shows the error; until the reader chose something else, it is also the exit code."""
        self._exit_code = error.exit_code if isinstance(error, LlamatuiError) else 1

        missing = error.pull if isinstance(error, TokenizerMissingError) else ""

        async def chosen(choice: ErrorChoice | None) -> None:
            self._exit_code = 0
            if choice == "story":
                await self.action_enter("story")
            elif choice == "fetch":
                self._load(pull=missing)
            elif choice == "retry":
                self._load()

        screen = ErrorScreen(title, error, fetch=describe(missing), story_instead=story_instead)
        self.push_screen(screen, chosen)

    async def action_quit(self) -> None:
        self.exit(return_code=self._exit_code)

    async def action_enter(self, name: RoomName) -> None:
        """Goes to a room with the same model; it is as it was left."""
        self.room.stop()
        await self.switch_mode(name)
        self._show_engine()
        if self.model is not None and self.room.model is None:
            self._open(self.model)

    def on_unmount(self) -> None:
        self.runner.close()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        dark = self.current_theme.dark
        yield SystemCommand(
            "Light theme" if dark else "Dark theme",
            "Change between day and night",
            lambda: setattr(self, "theme", "light" if dark else "dark"),
        )
        if isinstance(screen, Room):
            yield SystemCommand(
                "Sampling", "Show or hide temperature, top-p and seed", screen.action_toggle_sampling
            )
            yield from screen.commands()
            other: RoomName = "chat" if screen.NAME == "story" else "story"
            yield SystemCommand(
                f"Go to the {other} room",
                "With the same model; this room stays as it is",
                lambda: self.action_enter(other),
            )
        for command in super().get_system_commands(screen):
            if command.title not in ("Maximize", "Minimize"):
                yield command


def describe(pull: str) -> str:
    """What a name of the catalogue brings, in a few words."""
    entry = catalogue.find(pull) if pull else None
    return entry.offer if entry else ""


def make_room(name: RoomName, options: Launch, runner: Runner) -> Room:
    """Imports only the room that is entered."""
    if name == "story":
        from llamatui.app.tui.story_room import StoryRoom

        return StoryRoom(options, runner)
    from llamatui.app.tui.chat_room import ChatRoom

    return ChatRoom(options, runner)
