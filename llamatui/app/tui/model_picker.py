"""A list of the models that one could open, with what they are and whether they fit in memory."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from llamatui.app import store
from llamatui.app.text_file import named_path
from llamatui.app.tui.bars import one_line, shortened
from llamatui.app.tui.dismissed_once import DismissedOnce
from llamatui.app.tui.error_screen import explain
from llamatui.app.tui.runner import Closing, Runner

if TYPE_CHECKING:
    from llamatui.app.shelf import Shelved

COLUMNS = (("params", 6), ("format", 9), ("disk", 6), ("context", 7), ("needs", 6), ("", 8))
"""What follows the name, and its cells."""
GAP = 2
QUIET = "$foreground-muted"
TOLD_EVERY_S = 0.1


class ModelPicker(ModalScreen["Shelved | None"], DismissedOnce["Shelved | None"]):
    """Dismissed with the model to open, or to fetch and open; None if all stays as it is."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move('cursor_up')", "up", show=False, id="picker.up"),
        Binding("down", "move('cursor_down')", "down", show=False, id="picker.down"),
        Binding("pageup", "move('page_up')", "page up", show=False, id="picker.page_up"),
        Binding("pagedown", "move('page_down')", "page down", show=False, id="picker.page_down"),
        Binding("escape", "dismiss(None)", "leave", id="picker.leave"),
    ]
    DEFAULT_CSS = """
    ModelPicker {
        align: center middle;
        & > Vertical {
            width: 100; max-width: 100%; height: 96%; max-height: 34; padding: 1 1 0 2;
            background: $surface; border-left: outer $accent;
        }
        & .title { text-style: bold; width: 1fr; }
        & .columns { color: $text-muted; margin-top: 1; height: 1; }
        & .about { color: $text-muted; height: 3; padding-top: 1; }
        & Input, & Input:focus {
            border: none; height: 1; padding: 0; margin-top: 1; background: $surface;
            background-tint: transparent;
        }
        & OptionList, & OptionList:focus {
            border: none; padding: 0; height: 1fr; background: $surface;
            background-tint: transparent; scrollbar-size-vertical: 1;
            & > .option-list--option { padding: 0; }
        }
    }
    """

    @dataclass
    class Read(Message):
        """Some headers were read."""

        models: "list[Shelved]"
        done: bool

    @dataclass
    class Free(Message):
        memory: int | None

    @dataclass
    class Failed(Message):
        """Not all models could be looked for."""

        error: Exception

    def __init__(
        self, current: Path, is_open: bool, context: int | None, reader: Runner, wanted: str = ""
    ) -> None:
        """
        Args:
            current: The model of the room; its folder is looked through.
            is_open: Whether it could be opened.
            context: Most tokens that a room holds; None means the model's.
            reader: Where headers are read.
            wanted: What the list is narrowed to at first.
        """
        super().__init__()
        self._current = current
        self._is_open = is_open
        self._limit = context
        self._reader = reader
        self._wanted = wanted
        self._models: list[Shelved] = []
        self._shown: list[Shelved] = []
        self._free: int | None = None
        self._done = False
        self._failure = ""

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static("Open another model", classes="title")
            yield Input(self._wanted, placeholder="type to narrow the list, or a file", compact=True)
            yield Static(classes="columns", markup=False)
            yield OptionList(markup=False)
            yield Static(classes="about", markup=False)

    def on_mount(self) -> None:
        self.query_one(OptionList).can_focus = False
        self.query_one(Input).focus()
        self._reader.submit(self._look_for_models)

    def on_resize(self) -> None:
        self._show()

    def _look_for_models(self) -> None:
        """Called on the reader's thread."""
        try:
            self._look()
        except Closing:
            raise
        except Exception as error:  # the list says it, and has what was found before
            self.post_message(self.Failed(error))

    def _look(self) -> None:
        """Reads all headers."""
        from llamatui.app.memory import available_memory
        from llamatui.app.model import current_folder
        from llamatui.app.shelf import Shelved, look, model_files, offers

        self.post_message(self.Free(available_memory()))
        files = model_files(*current_folder(), self._current.parent)
        found: list[Shelved] = []
        if self._is_open and not self._current.exists():
            gone = "deleted; it stays open until you leave it"
            found.append(Shelved(self._current.stem, self._current, 0, problem=gone))
        told = time.monotonic()
        for path in files:
            self._reader.check()
            if not self.is_running:
                return
            # Vocabularies of GGUF files take a while to read: what is known is shown before.
            if found and (path.suffix.casefold() == ".gguf" or time.monotonic() - told > TOLD_EVERY_S):
                self.post_message(self.Read(found, False))
                found, told = [], time.monotonic()
            found.append(look(path, self._limit))
        self.post_message(self.Read([*found, *offers()], True))

    def on_model_picker_free(self, message: "ModelPicker.Free") -> None:
        self._free = message.memory

    def on_model_picker_failed(self, message: "ModelPicker.Failed") -> None:
        self._failure = f"Not all could be looked at. {explain(message.error)[0]}"
        self._done = True
        self._show()

    def on_model_picker_read(self, message: "ModelPicker.Read") -> None:
        self._models += message.models
        self._done = message.done
        self._show()

    @on(Input.Changed)
    def _narrow(self) -> None:
        self._show(keep=False)

    def _show(self, keep: bool = True) -> None:
        """`keep`: whether the cursor stays with its model; else it goes to the first that fits the words."""
        options = self.query_one(OptionList)
        before = self._highlighted if keep else None
        words = self.query_one(Input).value.casefold().split()
        self._shown = [model for model in self._models if all(word in _text(model) for word in words)]
        width = max(options.size.width - 1, 40)  # a scrollbar may come
        options.clear_options().add_options([Option(self._row(model, width)) for model in self._shown])
        if self._shown:
            at = self._shown.index(before) if before in self._shown else self._first()
            options.highlighted = at
        header = [name.rjust(cells) if name != "format" else name.ljust(cells) for name, cells in COLUMNS]
        self.query_one(".columns", Static).update(
            (" " * GAP).join(["name".ljust(self._name_cells(width)), *header]).rstrip()
        )
        self._describe()

    def _first(self) -> int:
        """Where the cursor begins: the model that is open, so that Enter changes nothing."""
        if not self.query_one(Input).value:
            for i, model in enumerate(self._shown):
                if model.path is not None and self._is_current(model):
                    return i
        return 0

    def _is_current(self, model: "Shelved") -> bool:
        if not self._is_open or model.path is None:
            return False
        try:
            return model.path.resolve() == self._current.resolve()
        except OSError:  # a relative path, and the current folder is gone
            return model.path == self._current

    @property
    def _highlighted(self) -> "Shelved | None":
        at = self.query_one(OptionList).highlighted
        return self._shown[at] if at is not None and at < len(self._shown) else None

    def _name_cells(self, width: int) -> int:
        return max(width - sum(cells + GAP for _, cells in COLUMNS), 8)

    def _row(self, model: "Shelved", width: int) -> Content:
        cells = self._name_cells(width)
        name = shortened(one_line(model.name), cells).ljust(cells)
        if model.problem:
            problem = Content.styled(one_line(model.problem), "$text-error")
            return Content.assemble((name, QUIET), " " * GAP, problem).truncate(width, ellipsis=True)
        state, style = self._state(model)
        values = (
            count(model.parameters), model.format, short_size(model.size), count(model.context, 1024),
            short_size(model.needs), state,
        )  # fmt: skip
        parts: list[str | tuple[str, str]] = [(name, "bold" if self._is_current(model) else "")]
        for (title, size), value in zip(COLUMNS, values, strict=True):
            text = value.ljust(size) if title in ("format", "") else value.rjust(size)
            parts += [" " * GAP, (text, style if not title else QUIET if model.path is None else "")]
        return Content.assemble(*parts)

    def _state(self, model: "Shelved") -> tuple[str, str]:
        """(what to know before choosing it, style)"""
        if self._is_current(model):
            return "open", "$accent"
        if model.path is None:
            return "to fetch", QUIET
        if self._free is None:
            return "", ""
        return ("fits", "$text-success") if model.needs <= self._free else ("too big", "$text-warning")

    @on(OptionList.OptionHighlighted)
    def _describe(self) -> None:
        about = self.query_one(".about", Static)
        model = self._highlighted
        if model is None:
            nothing = "Enter opens that file." if self._file else "Nothing is called so."
            about.update(self._failure or (nothing if self._done or self._file else "Looking …"))
            return
        free = f"{short_size(self._free)} of memory are free now" if self._free is not None else ""
        if model.problem:
            lines = [one_line(str(model.path)), one_line(model.problem)]
        elif model.path is None:
            licence = "  Its licence must be accepted on huggingface.co first." if model.gated else ""
            lines = [
                f"{model.about}{licence}",
                f"Enter fetches {short_size(model.size)} from huggingface.co.",
            ]
        else:
            again = "it is open: Enter changes nothing" if self._is_current(model) else "Enter opens it"
            lines = [one_line(str(model.path)), " · ".join(filter(None, (free, again)))]
        if self._failure:
            lines[-1:] = [one_line(self._failure)]
        width = max(about.content_size.width, 20)
        about.update("\n".join(shortened(line, width) for line in lines))

    @property
    def _file(self) -> Path | None:
        """What was typed, if that is a file's path and no part of a name."""
        path = named_path(self.query_one(Input).value.strip())
        return path if not self._shown and store.is_file(path) else None

    def action_move(self, how: str) -> None:
        getattr(self.query_one(OptionList), f"action_{how}")()

    @on(Input.Submitted)
    @on(OptionList.OptionSelected)
    def _choose(self) -> None:
        model = self._highlighted
        if model is None:
            if self._file:
                from llamatui.app.shelf import Shelved

                self.dismiss(Shelved(self._file.stem, self._file, 0))
        elif model.problem:
            self.app.bell()
        else:
            self.dismiss(model)

    def on_click(self, event: events.Click) -> None:
        if event.widget is self:  # beside the dialog
            self.dismiss(None)


def _text(model: "Shelved") -> str:
    return f"{model.name} {model.format} {'to fetch' if model.path is None else ''}".casefold()


def short_size(n_bytes: int) -> str:
    """In at most 6 cells: "538 MB"."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= size:
            number = n_bytes / size
            return f"{number:.1f} {unit}" if number < 9.95 else f"{number:.0f} {unit}"
    return f"{n_bytes} B" if n_bytes else ""


def count(number: int, thousand: int = 1000) -> str:
    """15191712 as "15.2M"; tokens of a context go by 1024."""
    for power, unit in ((3, "B"), (2, "M"), (1, "K")):
        size = thousand**power
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number) if number else ""
