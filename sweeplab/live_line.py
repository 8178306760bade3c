"""The live line of a terminal: what a command is at, with a bar where the end is known, and the time."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sweeplab.records import duration

if TYPE_CHECKING:  # where nothing is shown, rich is not needed
    from rich.console import Console
    from rich.text import Text

TIMES_A_SECOND = 4
"""The line is drawn anew."""

WIDEST_BAR = 24
"""Characters."""

_lines: list[Callable[[], "Text"]] = []
"""Those that are asked for now; the innermost is shown."""


class Phase:
    """A part of a command's work.

    `reached` tells how far it is; until then it shows how long it has taken.
    """

    def __init__(self, words: str, total: float = 0.0, unit: str = "") -> None:
        """Begin.

        Args:
            words: what is done.
            total: units of work; 0: not known.
            unit: what they are, such as epochs; empty: they are not counted out.
        """
        self.words, self.total, self.unit = words, total, unit
        self._began = self._known_at = time.monotonic()
        self._done, self._seconds_each = 0.0, 0.0
        self._draw: Callable[[], None] = lambda: None

    def reached(self, done: float, seconds_each: float | None = None) -> None:
        """Take note of units that are done.

        Args:
            done: of all.
            seconds_each: what a unit takes; None: as those took that this phase has seen.
        """
        self._known_at = time.monotonic()
        self._done = done
        self._seconds_each = (self._known_at - self._began) / max(done, 1e-9) if seconds_each is None else seconds_each
        self._draw()

    def line(self, width: int = 80) -> "Text":
        """What the terminal shows now."""
        now = time.monotonic()
        if not self.total:
            return _cut(f"{self.words}, {duration(now - self._began)}")
        since, left = now - self._known_at, f"{duration(now - self._began)} so far"
        done = self._done
        if self._seconds_each:
            # Between two reports the bar moves on at the known pace, up to where the next one is due.
            done = min(self.total, done + min(1.0, since / self._seconds_each))
            left = f"{duration(max(0.0, (self.total - self._done) * self._seconds_each - since))} left"
        count = f"{self.unit} {self._done:g}/{self.total:g}, " if self.unit else ""
        room = max(4, min(WIDEST_BAR, width - len(f"{self.words}    {count}{left}")))
        full = int(room * done / self.total)
        return _cut(f"{self.words}  {'█' * full}{'░' * (room - full)}  {count}{left}")


def _cut(text: str) -> "Text":
    from rich.text import Text

    return Text(text, no_wrap=True, overflow="ellipsis")


@contextmanager
def live_line(
    line: Callable[[], "Text"], console: "Console", *, in_thread: bool = True
) -> Iterator[Callable[[], None]]:
    """Show a line at the bottom of the terminal while a block runs; gives what draws it anew.

    Nothing is shown where the console is no terminal, or quiet.

    Args:
        line: gives what is shown.
        console: where.
        in_thread: have a thread draw it anew. Without one it is as fresh as the block asks for: where processes are
            forked, there may be no thread.
    """
    if not console.is_terminal or console.quiet:
        yield lambda: None
        return
    _lines.append(line)
    try:
        if len(_lines) > 1:  # its own display shows this line from now on
            yield lambda: None
            return
        from rich.live import Live

        live = Live(
            get_renderable=lambda: _lines[-1](),
            console=console,
            auto_refresh=in_thread,
            refresh_per_second=TIMES_A_SECOND,
            transient=True,
        )
        with live:
            live.refresh()
            yield live.refresh
    finally:
        _lines.remove(line)


@contextmanager
def phase(words: str, total: float = 0.0, unit: str = "", *, in_thread: bool = True) -> Iterator[Phase]:
    """Show a part of the work in the terminal's live line, unless the command is to be quiet.

    Args:
        words: what is done.
        total: see `Phase`.
        unit: see there.
        in_thread: see `live_line`.
    """
    one, drawn_at = Phase(words, total, unit), 0.0
    if not logging.getLogger("sweeplab").isEnabledFor(logging.INFO):
        yield one
        return
    from sweeplab.terminal import PatientConsole

    console = PatientConsole(highlight=False)
    with live_line(lambda: one.line(console.width), console, in_thread=in_thread) as draw:

        def draw_now_and_then() -> None:
            nonlocal drawn_at
            if time.monotonic() - drawn_at >= 1 / TIMES_A_SECOND:
                drawn_at = time.monotonic()
                draw()

        one._draw = draw_now_and_then
        yield one
