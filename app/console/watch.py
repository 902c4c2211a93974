"""Shows an upload and a build while they go on: live on a terminal, line by line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from app.client import OnUpload
from app.sse import Event


@contextmanager
def upload_bar(console: Console) -> Iterator[OnUpload]:
    """A progress bar for `Client.build`; nothing where there is no terminal."""
    columns = (TextColumn("upload"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("upload", total=None)
        yield lambda sent, total: bar.update(task, completed=sent, total=total)


def followed(events: Iterator[Event], console: Console) -> dict[str, Any]:
    """Show a job's events as they come.

    Returns:
        The job once it has ended.
    """
    with _Steps(console) as steps:
        for event in events:
            if event.kind == "end":
                return event.data
            steps.show(event)
    raise RuntimeError("A job's events must finish with `end`.")


class _Steps:
    """One line a step of the job, with its elapsed time. How long a step will take nobody knows, so no share of it
    is shown; how long builds like this one took, where there were some, is said once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._doing: tuple[str, TaskID | None] = ("", None)
        self._has_estimate = False
        columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description}", markup=False))
        self._bar = Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)

    def __enter__(self) -> _Steps:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._tick()
        self._bar.stop()

    def show(self, event: Event) -> None:
        data = event.data
        self._show_estimate(data.get("estimated_s"))
        if event.kind == "warning":
            self._console.print(f"warning: {data['message']}", style="yellow", markup=False, highlight=False)
        elif event.kind == "step":
            self._detail(data["message"])
        elif event.kind == "stage":
            self._begin(data["stage"])
        elif event.kind == "state":
            self._begin(data["message"])
        elif event.kind == "job":
            self._begin(data["stage"] or data["state"])

    def _show_estimate(self, estimated_s: float | None) -> None:
        if estimated_s is not None and not self._has_estimate:
            self._has_estimate = True
            self._console.print(f"builds like this one took about {estimated_s:.0f} s", highlight=False)

    def _begin(self, text: str) -> None:
        if text == self._doing[0]:
            return
        self._tick()
        self._doing = (text, self._bar.add_task(text, total=None))
        self._line(text)

    def _detail(self, text: str) -> None:
        name, task = self._doing
        if task is not None:
            self._bar.update(task, description=f"{name}: {text}")
        self._line(f"  {text}")

    def _tick(self) -> None:
        _, task = self._doing
        if task is not None:
            self._bar.update(task, total=1, completed=1)
        self._doing = ("", None)

    def _line(self, text: str) -> None:
        if not self._console.is_terminal:
            elapsed_s = time.monotonic() - self._started
            self._console.print(f"{elapsed_s:7.1f} s  {text}", markup=False, highlight=False, soft_wrap=True)
