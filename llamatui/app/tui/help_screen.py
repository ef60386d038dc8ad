"""All keys that do something here, read from the bindings themselves, and what the screen is about."""

from typing import TYPE_CHECKING, Any, ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Markdown, Static

from llamatui.app.tui.answer_markdown import parser
from llamatui.app.tui.dismissed_once import DismissedOnce
from llamatui.app.tui.keys import EVERYWHERE, own_bindings, rebound, show_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from textual.dom import DOMNode
    from textual.screen import Screen

KEY_CELLS = 16


class HelpScreen(ModalScreen[None], DismissedOnce[None]):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f1,question_mark,q", "dismiss", "close", id="help.close"),
        Binding("up,k", "scroll('scroll_up')", "up", show=False, id="help.up"),
        Binding("down,j", "scroll('scroll_down')", "down", show=False, id="help.down"),
        Binding("pageup,b", "scroll('scroll_page_up')", "page up", show=False, id="help.page_up"),
        Binding("pagedown,space", "scroll('scroll_page_down')", "page down", show=False, id="help.page_down"),
        Binding("home", "scroll('scroll_home')", "top", show=False, id="help.home"),
        Binding("end", "scroll('scroll_end')", "end", show=False, id="help.end"),
    ]
    DEFAULT_CSS = """
    HelpScreen {
        align: center middle;
        & > Vertical {
            width: 84; max-width: 100%; height: auto; max-height: 100%; padding: 1 0 0 2;
            background: $surface; border-left: outer $accent;
        }
        & VerticalScroll { height: auto; padding-right: 2; scrollbar-size-vertical: 1; }
        & .title { text-style: bold; width: 1fr; }
        & .group { color: $accent; text-style: bold; margin-top: 1; }
        & .keys { width: 1fr; height: auto; }
        & .hint { color: $text-muted; width: 1fr; padding: 1 0 1 0; }
        & Markdown { background: $surface; padding: 0; margin: 1 0 0 0; }
    }
    """

    def __init__(self, about: "Screen[Any]", keymap: "Mapping[str, str]") -> None:
        super().__init__()
        self._about = about
        self._keymap = keymap

    def compose(self) -> ComposeResult:
        about = self._about
        with Vertical():
            yield Static(about.title or "", classes="title", markup=False)
            with VerticalScroll(can_focus=False):
                yield Markdown(about.HELP, parser_factory=parser, open_links=False)
                for group, bindings in self._groups().items():
                    yield Static(group, classes="group")
                    yield Static(listed(bindings), classes="keys")
            yield Static(
                "Esc closes, ↑ ↓ scroll. Keys are yours to change: llamatui config path", classes="hint"
            )

    def on_resize(self) -> None:
        # Else the line below would be the first thing to go.
        self.query_one(VerticalScroll).styles.max_height = max(self.size.height - 6, 3)

    def _groups(self) -> dict[str, list[Binding]]:
        """The screen's own keys first, those of every room last."""
        about = self._about
        nodes: list[DOMNode] = [about, *about.walk_children(), self.app]
        kinds = dict.fromkeys(kind for node in nodes for kind in type(node).__mro__)
        groups: dict[str, list[Binding]] = {}
        last: list[Binding] = []
        for kind in kinds:
            title = kind.__dict__.get("BINDING_GROUP_TITLE") or "here"
            for binding in rebound(filter(lambda one: one.description, own_bindings(kind)), self._keymap):
                is_everywhere = (binding.id or "").startswith(f"{EVERYWHERE}.")
                (last if is_everywhere else groups.setdefault(title, [])).append(binding)
        return {**groups, "in every room": last}

    def action_scroll(self, how: str) -> None:
        getattr(self.query_one(VerticalScroll), how)(animate=False)

    def on_click(self, event: events.Click) -> None:
        if event.widget is self:  # beside the dialog
            self.dismiss()


def listed(bindings: "Iterable[Binding]") -> Content:
    """A line for each id: its keys, and what they do."""
    lines: dict[tuple[str | None, str], list[str]] = {}
    for binding in bindings:
        keys = lines.setdefault((binding.id, binding.tooltip or binding.description), [])
        if (key := show_key(binding)) not in keys:
            keys.append(key)
    rows = [
        Content.assemble((f"{', '.join(keys):{KEY_CELLS}}", "bold"), " ", description)
        for (_, description), keys in lines.items()
    ]
    return Content("\n").join(rows)
