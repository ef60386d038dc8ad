"""Makes Textual's Pilot wait for what a key or a click has set going, however busy the machine is.

Textual 8.2's own `press` and `pause` sleep until the process needs little CPU. Where others have the CPU,
that is at once, and what a test looks at then may be what was there before.
"""

import asyncio
import time
from collections import Counter
from typing import Any

import pytest
from textual.app import App
from textual.message_pump import MessagePump
from textual.pilot import Pilot

LONGEST = 5.0  # seconds; a handler may wait for what only the test gives it


def wait_for_handlers(patch: pytest.MonkeyPatch) -> None:
    """From then on, all messages are handled when `press`, `click` or `pause` comes back."""
    handling = Counter[MessagePump]()  # messages that are being handled
    dispatch, wait = MessagePump._dispatch_message, Pilot._wait_for_screen
    press, mouse, pause = Pilot.press, Pilot._post_mouse_events, Pilot.pause

    async def counted(self: MessagePump, *args: Any) -> None:
        handling[self] += 1
        try:
            await dispatch(self, *args)
        finally:
            handling[self] -= 1

    def is_settled(app: App[Any]) -> bool:
        pumps = {app, *(pump for screen in app.screen_stack for pump in screen.walk_children(with_self=True))}
        return not any(
            pump.message_queue_size or pump._next_callbacks or handling[pump]
            for pump in pumps
            if not (pump._closing or pump._closed)
        )

    async def settle(pilot: Pilot[Any]) -> None:
        app, end = pilot.app, time.monotonic() + LONGEST
        while app._running and app.screen_stack and not is_settled(app) and time.monotonic() < end:
            await asyncio.sleep(0.001)

    async def wait_and_settle(self: Pilot[Any], *args: Any) -> bool:
        is_done = await wait(self, *args)
        await settle(self)
        return is_done

    async def press_one_by_one(self: Pilot[Any], *keys: str) -> None:
        for key in keys:
            await press(self, key)

    async def mouse_where_it_is(self: Pilot[Any], *args: Any, **options: Any) -> bool:
        await self.pause()  # what is to be clicked may still move
        return await mouse(self, *args, **options)

    async def pause_and_settle(self: Pilot[Any], *args: Any) -> None:
        await pause(self, *args)
        await settle(self)

    patch.setattr(MessagePump, "_dispatch_message", counted)
    patch.setattr(Pilot, "_wait_for_screen", wait_and_settle)
    patch.setattr(Pilot, "press", press_one_by_one)
    patch.setattr(Pilot, "_post_mouse_events", mouse_where_it_is)
    patch.setattr(Pilot, "pause", pause_and_settle)
