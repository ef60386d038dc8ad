"""Screens that are dismissed: none takes another one with it."""

from textual.await_complete import AwaitComplete
from textual.screen import Screen, ScreenResultType


class DismissedOnce(Screen[ScreenResultType]):
    """Keys or clicks that come as one burst may reach a screen after the first of them has dismissed it.

    In a modal screen it stands behind ModalScreen, whose style the first base class gives.
    """

    def dismiss(self, result: ScreenResultType | None = None) -> AwaitComplete:
        """Leaves the screen; nothing if that was done, or if another screen lies over it."""
        return super().dismiss(result) if self.is_active else AwaitComplete()
