"""``qcthreads top`` on a terminal, drawn by textual; shows what it is given, again and again, and decides nothing."""

from __future__ import annotations

import asyncio
import sys
from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.timer import Timer
from textual.widgets import DataTable, Footer, Static

from ..errors import LeaseError
from ..machine import Machine
from ..monitoring.live import Live, Now
from .top_frame import LEASE_COLUMNS, SIGNS, THREAD_COLUMNS, cpu_lines, headline, lease_rows, thread_rows

_SHORTEST_S, _LONGEST_S = 0.25, 60.0


class TopScreen(App[None]):
    """CPUs above, leases or threads below, keys at the foot."""

    CSS = """
    #head { height: 1; text-style: bold; }
    #cpus { height: auto; max-height: 50%; overflow-y: auto; }
    DataTable { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "quit", "quit", show=False, priority=True),
        Binding("t", "turn", "threads/leases"),
        Binding("p", "pause", "pause"),
        Binding("plus,equals_sign", "slower", "slower", key_display="+"),
        Binding("minus", "faster", "faster", key_display="-"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, machine: Machine, live: Live, interval_s: float) -> None:
        super().__init__(ansi_color=True)
        self._machine = machine
        self._live = live
        self._interval_s = interval_s
        self._timer: Timer | None = None
        self._now: Now | None = None
        self._threads = self._paused = False
        self._signs = SIGNS.of(sys.stdout.encoding or "ascii")

    def compose(self) -> ComposeResult:
        """What the screen consists of."""
        yield Static("looking ...", id="head", markup=False)
        yield Static("", id="cpus", markup=False)
        yield DataTable[str](cursor_type="row", zebra_stripes=False)
        yield Footer(compact=True)

    async def on_mount(self) -> None:
        """Begin to look."""
        self._set_timer()

    async def look(self) -> None:
        """Look once, in a thread, so that keys are answered meanwhile."""
        if self._paused:
            return
        try:
            self._now = await asyncio.to_thread(self._live.look)
        except LeaseError as error:
            self.query_one("#head", Static).update(str(error))
            return
        self._show()

    def on_resize(self) -> None:
        """Fit the CPUs into the new width."""
        if self._now is not None:
            self._show()

    def action_turn(self) -> None:
        """Threads instead of leases, and back."""
        self._threads = not self._threads
        self.on_resize()

    def action_pause(self) -> None:
        """Stop looking, and go on."""
        self._paused = not self._paused
        self.on_resize()

    def action_slower(self) -> None:
        """Look half as often."""
        self._interval_s = min(_LONGEST_S, self._interval_s * 2)
        self._set_timer()

    def action_faster(self) -> None:
        """Look twice as often."""
        self._interval_s = max(_SHORTEST_S, self._interval_s / 2)
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_interval(self._interval_s, self.look)
        self.on_resize()

    def _show(self) -> None:
        assert self._now is not None
        state = "paused" if self._paused else f"every {self._interval_s:g} s"
        self.query_one("#head", Static).update(f"{headline(self._now)}; {state}")
        lines = cpu_lines(self._machine, self._now, self.size.width, self._signs)
        self.query_one("#cpus", Static).update("\n".join(lines))
        self._fill()

    def _fill(self) -> None:
        """The rows anew, where they were scrolled to."""
        assert self._now is not None
        table = self.query_one(DataTable)
        row, x, y = table.cursor_row, table.scroll_x, table.scroll_y
        rows = list(thread_rows(self._now) if self._threads else lease_rows(self._now))
        table.clear(columns=True)
        for at, title in enumerate(THREAD_COLUMNS if self._threads else LEASE_COLUMNS):
            # Measured by the table they would be cut until it is idle, in every frame anew.
            table.add_column(title, width=max(1, len(title), *(len(row[at]) for row in rows)))
        table.add_rows(rows)
        table.move_cursor(row=min(row, max(0, len(rows) - 1)), animate=False, scroll=False)
        table.scroll_to(x, y, animate=False)
