"""How it looks. After a change that is meant: pytest tests/app/tui/test_snapshots.py --snapshot-update"""

from pathlib import Path

import pytest
from textual.widgets import Input, TextArea

from llamatui.app.engine import Timings
from llamatui.app.tui.error_screen import ErrorScreen

ANSWER = """\
A llama is a **camelid**, at home in the Andes:

1. it carries up to `30 kg`,
2. it hums when it is *content*.

> It spits, but rarely at people.

```python
herd = ["Lily", "Tom"]
```
"""


@pytest.fixture(autouse=True)
def frozen(monkeypatch):
    """What differs from run to run or machine to machine stands still."""
    monkeypatch.setattr(Timings, "decode_tps", 321.0)
    monkeypatch.setattr(Timings, "ttft_s", property(lambda times: 0.12, lambda times, seconds: None))
    monkeypatch.setattr("llamatui.backends.registry.default_threads", lambda: 2)
    for widget in (Input, TextArea):
        monkeypatch.setattr(widget, "cursor_blink", False)


@pytest.fixture
def snapshot_of(snap_compare, make_app, wait_until):
    def compare(room, *keys, size=(80, 24), **options):
        app = make_app(room, **{"backend": "numpy", **options})  # there everywhere, and never in the making

        async def run(pilot):
            await wait_until(lambda: app.room.model is not None or isinstance(app.screen, ErrorScreen))
            for key in keys:
                await pilot.press(key)
                await pilot.pause()
                await wait_until(lambda: not app.room.busy)
            await pilot.pause(0.1)

        return snap_compare(app, terminal_size=size, run_before=run)

    return compare


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_story_empty(snapshot_of, theme):
    assert snapshot_of("story", theme=theme)


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_story_with_text(snapshot_of, theme):
    assert snapshot_of("story", "1", theme=theme)


def test_story_wide(snapshot_of):
    assert snapshot_of("story", "1", size=(120, 36), seed=42)


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_chat_with_an_answer(snapshot_of, say, theme):
    say(ANSWER)
    assert snapshot_of("chat", *"hello", "enter", theme=theme, context=512)


def test_chat_empty(snapshot_of, say):
    say()
    assert snapshot_of("chat")


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_error(snapshot_of, theme):
    assert snapshot_of("story", theme=theme, model=Path("no/such/model.bin"))
