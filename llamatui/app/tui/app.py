"""The app: opens models while the room is already there, switches backends and rooms, shows errors."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, get_args

from textual import work
from textual._types import CallbackType
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.command import CommandPalette
from textual.driver import Driver
from textual.markup import escape
from textual.reactive import Initialize, Reactive
from textual.screen import Screen
from textual.theme import Theme
from textual.timer import Timer

from llamatui.app import catalogue
from llamatui.app.tui.bars import Status, one_line
from llamatui.app.tui.dismissed_once import DismissedOnce
from llamatui.app.tui.errands import Errand, Loading, Reopening, Switching
from llamatui.app.tui.error_screen import ErrorChoice, ErrorScreen, explain
from llamatui.app.tui.keeping import Keeping
from llamatui.app.tui.launch import Launch, RoomName
from llamatui.app.tui.messages import BackendReady, DocumentReady, ErrandFailed, ErrandStep, ModelReady
from llamatui.app.tui.pastes import safe_driver
from llamatui.app.tui.room import Room
from llamatui.app.tui.runner import Piece, Runner
from llamatui.app.tui.sampling_panel import SamplingPanel
from llamatui.app.tui.themes import CONTRAST, DARK, LIGHT, NAMES, PLAIN, few_colours
from llamatui.errors import LlamatuiError, TokenizerMissingError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from llamatui.app.model import LoadedModel
    from llamatui.app.shelf import Shelved

CHECKS_PER_SECOND = 10  # whether an engine is there, or a room has come to rest
THEMES = {"dark": "A page by night", "light": "A page by day", "contrast": "Black, white and yellow"}


class Palette(CommandPalette, DismissedOnce[CallbackType]):
    """Textual's, which may be left by several keys at once."""


class LlamaApp(App[None]):
    TITLE = "llamatui"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+p", "command_palette", "palette", show=False, priority=True, id="app.palette"),
        Binding("ctrl+o", "pick_model", "open another model", show=False, id="app.model"),
        Binding("ctrl+b", "switch_backend", "change the backend", show=False, id="app.backend"),
        Binding("ctrl+l", "history", "history", show=False, id="app.history"),
        Binding("f2", "compare", "compare", show=False, id="app.compare"),
        Binding("f1", "app.help", "help", id="app.help"),
        Binding("ctrl+q", "app.quit", "quit", priority=True, id="app.quit"),
    ]
    CSS = """
    ToastRack { dock: top; align: right top; margin-top: 2; }
    """
    # Set later, it would have all styles computed again.
    theme: Reactive[str] = Reactive(Initialize(attrgetter("options.theme")))

    def __init__(self, room: RoomName, options: Launch) -> None:
        """
        Raises:
            UsageError: There is no such theme.
        """
        # The room is there from the first paint on, without an empty screen before it.
        self.DEFAULT_MODE = room  # type: ignore[misc]
        plain = few_colours()
        self.options = options
        self._own_themes = {theme.name: theme for theme in (PLAIN if plain else (DARK, LIGHT, CONTRAST))}
        super().__init__(ansi_color=plain or None)
        self.runner = Runner("inference", self._job_failed)
        self.errands = Runner("errands", self._job_failed)
        self.reader = Runner("headers", self._job_failed)
        self.keeping = Keeping(self, self.runner, options)
        self.model: LoadedModel | None = None
        """The one that was opened last: a room that is entered goes on with it."""
        self._errand: Errand | None = None
        self._coming: LoadedModel | None = None  # is ready, and the room is not
        self._watch: Timer | None = None  # while a faster engine is on its way
        self._wanted = options.document, ""  # of the history, as soon as there is a model
        self._reopened: DocumentReady | None = None  # is ready, and the room is not
        self._exit_code = 0
        self._has_begun = False
        for name in get_args(RoomName):
            # The prompt is for the room that was asked for.
            launch = options if name == room else replace(options, prompt="")
            self.add_mode(name, partial(make_room, name, launch, self.runner, self.keeping))
        for theme in self._own_themes.values():
            self.register_theme(theme)
        if options.theme not in self.available_themes:
            raise UsageError(f"no theme is called {options.theme!r}", f"choose {', '.join(NAMES)}")
        self.set_keymap(options.keys)

    def get_driver_class(self) -> type[Driver]:
        return safe_driver(super().get_driver_class())

    def get_theme(self, theme_name: str) -> Theme | None:
        # Textual asks while it is made, when none can be registered yet.
        return self._own_themes.get(theme_name) or super().get_theme(theme_name)

    @property
    def room(self) -> Room:
        """The room, also while something lies over it."""
        return next(screen for screen in self.screen_stack if isinstance(screen, Room))

    @property
    def _is_leaving(self) -> bool:
        """The app closes, and a room's widgets go before what is still to be told."""
        return not self.screen_stack or not self.room.query(Status)

    @contextmanager
    def batch_update(self) -> Iterator[None]:
        """Textual's, but not around the start: it would throw the room's first frame away."""
        if self._has_begun:
            with super().batch_update():
                yield
        else:
            yield

    def on_ready(self) -> None:
        self._has_begun = True
        # After the first paint: the engine's imports would hold it up.
        self.call_after_refresh(self._load, self.options)

    # Errands: what the errands thread is asked for, and how it goes on when that is done.

    def _load(self, options: Launch, pull: str = "") -> None:
        self._begin(Loading(self, self.errands, options, one_line(Path(options.model).stem), pull))

    def _begin(self, errand: Errand) -> None:
        """The newest wish is the one that counts."""
        self._call_off()
        self._errand = errand
        self.errands.submit(errand)

    def _call_off(self) -> None:
        self._coming = self._reopened = None
        if self._errand is not None:
            self._errand.cancel()
            self._done(self._errand)

    def _done(self, errand: Errand) -> bool:
        """Whether that errand is still wanted; it is over either way."""
        if errand is not self._errand or self._is_leaving:
            return False
        self._errand = None
        if self.room.model is not None:
            self.room.show_soon("")
        return True

    def on_errand_step(self, message: ErrandStep) -> None:
        if message.errand is not self._errand or self._is_leaving:
            return
        if self.room.model is None:
            self.room.show_step(message.step)
        else:
            self.room.show_soon(f"{message.errand.what}: {message.step}")

    def on_errand_failed(self, message: ErrandFailed) -> None:
        errand = message.errand
        if not self._done(errand):
            return
        if isinstance(errand, Loading):
            name = one_line(Path(errand.options.model).name)
            self._fail(f"{name} cannot be opened", message.error, errand.options)
        else:
            self._say_error(f"{errand.what} failed", message.error)

    def on_model_ready(self, message: ModelReady) -> None:
        if self._done(message.errand):
            self._take(message.model)

    def on_backend_ready(self, message: BackendReady) -> None:
        if not self._done(message.errand):
            return
        message.model.switch(message.backend)
        # Also for models that are opened later: who changed it once has a reason.
        self.options = replace(self.options, backend=message.backend.name)
        self._watch_engine()

    def _take(self, model: "LoadedModel") -> None:
        """Goes on with a model as soon as the room has come to rest."""
        self._coming = model
        if self._is_away:
            self.notify(f"{one_line(model.name)} is ready. It opens when you are back.", markup=False)
        self._open_coming()

    @property
    def _is_away(self) -> bool:
        """Something holds on to the words that the room has now, and would act on them later."""
        return not self._is_leaving and (self.screen is not self.room or self.room.editing)

    def _open_coming(self) -> None:
        model = self._coming
        if model is None or self._is_leaving:
            return
        room, away = self.room, self._is_away
        if room.busy or away:
            if not away:
                room.stop()
            self.set_timer(1 / CHECKS_PER_SECOND, self._open_coming)
            return
        self._coming = None
        before, is_new = room.model, model is not self.model
        if before is None:
            self.model = model
        try:
            room.open(model)
        except LlamatuiError as error:
            if before is None:
                self._fail(f"{one_line(model.name)} cannot chat", error, self.options, story_instead=True)
            else:
                self._say_error(f"{one_line(model.name)} is no model for this room", error)
            return
        self.model = model
        if is_new:
            self._watch_engine()
        if self._wanted[0]:
            self.reopen(*self._wanted)

    # What is taken out of the history.

    def reopen(self, uid: str, sought: str = "") -> None:
        """Shows that text in the room, as soon as there is a model and the room has come to rest.

        Args:
            sought: What was found on a branch of it that is not shown.
        """
        model = self.room.model
        self._wanted = ("", "") if model else (uid, sought)
        if model is not None:
            self._begin(Reopening(self, self.errands, self.room.NAME, uid, model, self.keeping, sought))

    async def on_document_ready(self, message: DocumentReady) -> None:
        if self._done(message.errand):
            self._reopened = message
            await self._put()

    async def _put(self) -> None:
        message = self._reopened
        if message is None:
            return
        assert isinstance(message.errand, Reopening)
        # A room that is entered for the first time has no widgets yet, either.
        away = self._is_leaving or self._is_away or message.errand.kind != self.room.NAME
        if away or self.room.busy:
            if not away:
                self.room.stop()
            self.set_timer(1 / CHECKS_PER_SECOND, self._put)
            return
        self._reopened, room = None, self.room
        try:
            await self.keeping.put(room, message.document, message.errand.sought)
        except LlamatuiError as error:
            self._say_error("It cannot be opened", error)
            return
        assert room.model is not None
        known = message.sha256, self.keeping.sha256(room.model)
        named = one_line(message.model), one_line(room.model.name)
        before, now = known if all(known) else named
        if before != now:
            self.notify(f"It was written with {named[0]}; {named[1]} goes on.", markup=False)

    def action_command_palette(self) -> None:
        if not isinstance(self.screen, CommandPalette):
            self.push_screen(Palette(id="--command-palette"))

    def action_history(self) -> None:
        """Older stories or chats: one of them can be opened."""
        if self.screen is self.room:
            self._show_history()

    @work(group="history", exclusive=True)
    async def _show_history(self) -> None:
        await self.keeping.show_history(self.room, self.reopen)

    def _watch_engine(self) -> None:
        """Shows the engine that was on its way as soon as it is there, and says why nothing faster runs."""
        assert self.model is not None
        self._show_engine()
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        if self.model.backend.preparing:
            self._watch = self.set_timer(1 / CHECKS_PER_SECOND, self._watch_engine)
            return
        for warning in self.model.warnings:
            self.notify(warning, title="Slower than it could be", severity="warning", markup=False)

    def _show_engine(self) -> None:
        if not self._is_leaving and self.room.model is not None:
            self.room.show_engine()

    def _job_failed(self, error: Exception) -> None:
        """Called on the thread of the job."""
        self.call_later(self._say_error, "Something went wrong", error)

    def _say_error(self, title: str, error: Exception) -> None:
        message, hint = explain(error)
        self.notify(
            "\n".join(filter(None, (message, hint))), title=title, severity="error", timeout=12, markup=False
        )

    def _fail(self, title: str, error: Exception, options: Launch, *, story_instead: bool = False) -> None:
        """Shows the error; while nothing is open and nothing else was chosen, it is the exit code too."""
        before = self.room.model
        if before is None:
            self._exit_code = error.exit_code if isinstance(error, LlamatuiError) else 1
        missing = error.pull if isinstance(error, TokenizerMissingError) else ""

        async def chosen(choice: ErrorChoice | None) -> None:
            if choice in ("story", "fetch", "retry"):
                self._exit_code = 0
            if choice == "story":
                await self.action_enter("story")
            elif choice == "fetch":
                self._load(options, pull=missing)
            elif choice == "retry":
                self._load(options)

        screen = ErrorScreen(
            title, error, fetch=describe(missing), story_instead=story_instead,
            back=one_line(before.name) if before else "", keymap=self.options.keys,
        )  # fmt: skip
        self.push_screen(screen, chosen)

    # What keys, the palette and the rooms' commands ask for.

    async def action_quit(self) -> None:
        self.exit(return_code=self._exit_code)

    def exit(
        self, result: None = None, return_code: int = 0, message: "RenderableType | None" = None
    ) -> None:
        if not self._is_leaving:  # then the widgets are there still, with the last key that was typed
            for room in self.keeping.rooms:
                self.keeping.save(room)
        super().exit(result, return_code, message)

    def action_pick_model(self, name: str = "") -> None:
        """Opens the model of that name or path; without one, shows what there is."""
        entry = catalogue.find(name) if name else None
        if name and entry is None:
            self._open_other(name)
            return
        from llamatui.app.tui.model_picker import ModelPicker

        def chosen(model: "Shelved | None") -> None:
            if model is None:
                return
            if isinstance(self.screen, ErrorScreen):
                self.screen.dismiss(None)
            self._open_other(model.path or model.name, pull="" if model.path else model.name)

        current = self.room.model
        path, context = current.path if current else Path(self.options.model), self.options.context
        self.push_screen(ModelPicker(path, current is not None, context, self.reader, name), chosen)

    def _open_other(self, model: str | Path, pull: str = "") -> None:
        current = self.room.model
        if current is not None and Path(model) == current.path:
            self._call_off()  # who chooses what is open does not want another any more
            return
        self._exit_code = 0
        # The tokenizer and the chat format were said of the model before.
        self._load(replace(self.options, model=model, tokenizer=None, chat_format=""), pull)

    def action_switch_backend(self, name: str = "") -> None:
        """Lets that backend go on, in mid-text too; without a name, shows which there are."""
        model = self.room.model
        if model is None:
            self.notify("The model is not open yet.")
            return
        if name:
            if name == model.backend.name and not model.backend.preparing:
                self._call_off()
                self.notify(f"{name} runs already.", markup=False)
            elif name == model.backend.preparing:
                self.notify(f"{name} is on its way: it takes over by itself.", markup=False)
            else:
                self._begin(Switching(self, self.errands, model, name))
            return
        from llamatui.app.tui.backend_picker import BackendPicker

        def chosen(name: str | None) -> None:
            if name:
                self.action_switch_backend(name)

        self.push_screen(BackendPicker(model.backend), chosen)

    def action_compare(self) -> None:
        """Shows what the model would say now on two sides, and goes on with the one that is chosen."""
        room = self.room
        if self.screen is not room:
            return
        if room.busy:
            room.stop()
            self.set_timer(1 / CHECKS_PER_SECOND, self.action_compare)
            return
        question, model = room.question(), room.model
        if model is None or room.session is None or question is None:
            self.notify("There is nothing to go on from yet.")
            return
        from llamatui.app.tui.compare_screen import CompareScreen

        async def chosen(pieces: list[Piece] | None) -> None:
            if pieces and room.model is model:
                await room.accept(pieces)
            elif pieces:
                self.notify("Another model is open now, and spells in another way.")

        sampling = room.query_one(SamplingPanel).sampling
        self.push_screen(CompareScreen(model, *question, sampling, room.session.context), chosen)

    def action_help(self) -> None:
        """All keys of the screen, and what it is about."""
        if self.screen.HELP:
            from llamatui.app.tui.help_screen import HelpScreen

            self.push_screen(HelpScreen(self.screen, self.options.keys))

    async def action_enter(self, name: RoomName) -> None:
        """Goes to a room with the same model; it is as it was left."""
        self.room.stop()
        if self.room.model is not None:
            self.room.show_soon("")
        await self.switch_mode(name)
        self._show_engine()
        if self.model is not None and self.room.model is not self.model and self._coming is None:
            self._take(self.model)

    def on_unmount(self) -> None:
        self.keeping.close()
        for runner in (self.runner, self.errands, self.reader):
            runner.close()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        if isinstance(screen, Room):
            yield from screen.commands()
            yield SystemCommand(
                "Sampling", "Show or hide temperature, top-p and seed", screen.action_toggle_sampling
            )
            yield SystemCommand(
                "History", f"Older {'stories' if screen.NAME == 'story' else 'chats'}", self.action_history
            )
            yield SystemCommand(
                "Open another model", "In this room; the text goes on with it", self.action_pick_model
            )
            if self._errand is not None and screen.model is not None:
                yield SystemCommand(
                    "Call it off", escape(f"Stop {self._errand.what}; all stays as it is"), self._call_off
                )
            yield SystemCommand(
                "Change the backend", "numba, q8_0 or numpy, in mid-text too", self.action_switch_backend
            )
            yield SystemCommand(
                "Compare", "Two backends or settings side by side, on the same seed", self.action_compare
            )
            other: RoomName = "chat" if screen.NAME == "story" else "story"
            yield SystemCommand(
                f"Go to the {other} room",
                "With the same model; this room stays as it is",
                lambda: self.action_enter(other),
            )
            yield SystemCommand("Keys", "All of them, and what they do here", self.action_help)
        for name, about in THEMES.items():
            if name != self.theme:
                yield SystemCommand(f"Theme: {name}", about, partial(setattr, self, "theme", name))
        yield SystemCommand("Theme: others", "Those that come with Textual", self.action_change_theme)
        yield SystemCommand("Screenshot", "Save the screen as an SVG file", self.deliver_screenshot)
        yield SystemCommand("Quit", "Leave llamatui", self.action_quit)


def describe(pull: str) -> str:
    """What a name of the catalogue brings, in a few words."""
    entry = catalogue.find(pull) if pull else None
    return entry.offer if entry else ""


def make_room(name: RoomName, options: Launch, runner: Runner, keeping: Keeping) -> Room:
    """Imports only the room that is entered."""
    if name == "story":
        from llamatui.app.tui.story_room import StoryRoom

        return StoryRoom(options, runner, keeping)
    from llamatui.app.tui.chat_room import ChatRoom

    return ChatRoom(options, runner, keeping)
