"""What a person sees while a run goes on: every running step with its progress, every finished one as a line. On stderr."""

from __future__ import annotations

import threading
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from edgepress.step import Result, Step


class Live:
    """A `Listener` that draws on a terminal and prints plain lines elsewhere.

    Args:
        console: where to draw; by default stderr.
        quiet: print nothing at all.
    """

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, quiet=quiet, highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(show_speed=False),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal or quiet,
        )
        self._tasks: dict[str, TaskID] = {}
        self._cached = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()
        if self._cached and kind is None:
            self.console.print(f"[dim]{self._cached} steps unchanged, taken from the store[/dim]")

    def started(self, step: Step) -> None:
        """Show a running step."""
        with self._lock:
            self._tasks[step.name] = self._progress.add_task(step.name, total=None)

    def moved(self, step: Step, text: str, done: int, total: int) -> None:
        """Show how far it is."""
        with self._lock:
            task = self._tasks.get(step.name)
            if task is not None:
                self._progress.update(task, description=f"{step.name} [dim]{text}[/dim]", completed=done, total=total or None)

    def ended(self, step: Step, result: Result | None) -> None:
        """A finished step becomes a line; cached ones are only counted."""
        if result is None:
            self._line(step, "red", "failed")
        elif result.cached:
            with self._lock:
                self._cached += 1
        else:
            self._line(step, "green", "done", f" [dim]{result.seconds:.1f} s[/dim]")

    def interrupted(self, step: Step) -> None:
        """A step that was ended from outside becomes a line too."""
        self._line(step, "yellow", "interrupted")

    def _line(self, step: Step, colour: str, state: str, after: str = "") -> None:
        with self._lock:
            task = self._tasks.pop(step.name, None)
            if task is not None:
                self._progress.remove_task(task)
            self.console.print(f"[{colour}]{state:<6}[/{colour}]  {step.name}{after}")
