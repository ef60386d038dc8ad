"""What the story room asks for: memory and the author's note, and where to save."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Label

from llamatui.app.story_export import export_story, suggested_name
from llamatui.app.tui.composer import Editor
from llamatui.app.tui.dismissed_once import DismissedOnce
from llamatui.app.tui.flow import printable
from llamatui.app.tui.keys import key_of
from llamatui.app.tui.replaying import SUFFIX, Replaying
from llamatui.errors import LlamatuiError

_DIALOG = """
    align: center middle;
    & > VerticalScroll {
        width: 76; max-width: 96%; height: auto; max-height: 96%; padding: 1 2; scrollbar-size-vertical: 1;
        background: $surface; border-left: outer $accent;
    }
    & .title { text-style: bold; }
    & .hint { color: $text-muted; width: 1fr; }
    & .error { color: $text-error; width: 1fr; display: none; margin-top: 1; }
"""


class MemoryDialog(ModalScreen[None], DismissedOnce[None]):
    """Two fields: what the model reads beside the page."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "save", "save", id="memory.save"),
        Binding("escape", "leave", "leave as it is", id="memory.leave"),
    ]
    DEFAULT_CSS = f"""
    MemoryDialog {{
        {_DIALOG}
        & Editor, & Editor:focus {{
            height: auto; min-height: 2; max-height: 6; margin: 0 0 1 0; border: none; padding: 0 1;
            background: $background; scrollbar-size-vertical: 1;
            & .text-area--cursor-line {{ background: transparent; }}
        }}
    }}
    """

    def __init__(
        self,
        saved: tuple[str, str],
        shown: tuple[str, str],
        save: Callable[[str, str], None],
        typed: Callable[[tuple[str, str] | None], None],
    ) -> None:
        """
        Args:
            saved: Memory and note as they are.
            shown: As they are, or as they were when the dialog was left.
            save: Raises a LlamatuiError that says why it will not do.
            typed: Told what the fields hold, as they change and at the end; None: what is saved.
        """
        super().__init__()
        self._saved, self._shown, self._save, self._tell = saved, shown, save, typed

    def compose(self) -> ComposeResult:
        with VerticalScroll(can_focus=False):
            yield Label("Memory", classes="title")
            yield Label("Read first and never forgotten: who is who, where it happens.", classes="hint")
            yield Editor(
                self._shown[0], id="memory", placeholder="Max is a little dog. He is afraid of the sea.",
                highlight_cursor_line=False,
            )  # fmt: skip
            yield Label("Author's note", classes="title")
            yield Label("Read a little before the end: the tone, or what should come next.", classes="hint")
            yield Editor(
                self._shown[1], id="note", placeholder="It becomes dark and a little scary.",
                highlight_cursor_line=False,
            )  # fmt: skip
            save, leave = key_of(self, "memory.save"), key_of(self, "memory.leave")
            yield Label(
                f"Not on the page. Tab: the other field. {save} saves, {leave} leaves.", classes="hint"
            )
            yield Label("", classes="error", markup=False)

    def on_mount(self) -> None:
        for editor in self.query(Editor):
            editor.move_cursor(editor.document.end)

        if self._shown != self._saved:
            _explain(self, "This was typed before and not saved yet.")

    @property
    def _typed(self) -> tuple[str, str]:
        memory, note = (self.query_one(f"#{name}", Editor).text.strip() for name in ("memory", "note"))
        return memory, note

    def action_save(self) -> None:
        try:
            self._save(*self._typed)
        except LlamatuiError as error:
            _explain(self, f"{error.message}: {error.hint}")
        else:
            self._saved = self._typed
            self.action_leave()

    def action_leave(self) -> None:
        self.on_text_area_changed()
        self.dismiss(None)

    def on_text_area_changed(self) -> None:
        self._tell(self._typed if self._typed != self._saved else None)


TWO_SUFFIXES = re.compile(r"(\.(?:txt|md|replay))\.txt$", re.IGNORECASE)


class SaveDialog(ModalScreen[Path | None], DismissedOnce[Path | None]):
    """Dismissed with the file that was written."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "do not save", id="save.leave"),
    ]
    DEFAULT_CSS = f"""
    SaveDialog {{
        {_DIALOG}
        & Input, & Input:focus {{
            border: none; height: 1; margin: 1 0; padding: 0 1; background: $background;
        }}
    }}
    """

    def __init__(self, story: str, replaying: Replaying) -> None:
        super().__init__()
        self._story = story
        self._replaying = replaying
        self._confirmed = ""  # the name of the file that may be overwritten

    def compose(self) -> ComposeResult:
        with VerticalScroll(can_focus=False):
            yield Label("Save the story", classes="title")
            yield Input(suggested_name(self._story), select_on_focus=False)
            yield Label(
                "Enter saves it: .txt as plain text, .md as Markdown, .replay to play or compute it "
                f"again. {key_of(self, 'save.leave')} leaves.{_folder()}",
                classes="hint", markup=False,
            )  # fmt: skip
            yield Label("", classes="error", markup=False)

    def on_mount(self) -> None:
        line = self.query_one(Input)
        line.selection = line.selection._replace(start=0, end=max(line.value.rfind("."), 0))

    @on(Input.Submitted)
    async def _submitted(self, event: Input.Submitted) -> None:
        # Who types a whole name over the selected one leaves the .txt that was suggested behind it.
        name = TWO_SUFFIXES.sub(r"\1", event.value.strip())
        overwrite = name == self._confirmed
        try:
            if name.lower().endswith(SUFFIX):
                path = await self._replaying.write(name, overwrite=overwrite)
            else:
                path = export_story(self._story, name, overwrite=overwrite)
        except FileExistsError:
            self._confirmed = name
            _explain(self, "There is such a file already. Enter once more overwrites it.")
        except LlamatuiError as error:
            _explain(self, f"{error.message}: {error.hint}")
        else:
            self.dismiss(path)

    @on(Input.Changed)
    def _changed(self) -> None:
        self._confirmed = ""
        self.query_one(".error").display = False


def _folder() -> str:
    try:
        return f"\nFolder: {printable(str(Path.cwd()))}"
    except OSError:  # it was deleted
        return ""


def _explain(screen: ModalScreen[Any], text: str) -> None:
    label = screen.query_one(".error", Label)
    label.update(text)
    label.display = True
