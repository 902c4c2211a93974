"""Line: the requests that wait for their turn of an engine, and who is next."""

from __future__ import annotations

from collections import deque

from app.serving.requests import Request

PATIENCE = 4.0  # a request lets smaller ones pass for at most so many times as long as it runs
_LEARNT = 0.2  # of the time that a row takes, from the last run


class Line:
    """First come, first served; but a request may pass larger ones that have not waited long.

    Behind a few requests of many rows each, one of a single row would wait for all their runs. It goes first where
    that delays each of them little, measured by its own length; so none of them is passed for ever, and requests of
    equal size never pass each other.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.waiting: deque[Request] = deque()  # the next one first; to be looked at only
        self._row_s = 0.0  # what a row takes in a run

    def add(self, request: Request) -> None:
        """Queue up."""
        waiting = self.waiting
        self.rows += request.rows
        if not waiting or waiting[-1].rows <= request.rows:
            waiting.append(request)
            return
        place = len(waiting)
        while place and self._lets_pass(waiting[place - 1], request):
            place -= 1
        waiting.insert(place, request)

    def put_back(self, request: Request) -> None:
        """Be the first again."""
        self.rows += request.rows
        self.waiting.appendleft(request)

    def remove(self, request: Request) -> None:
        """Leave, if it still waits."""
        if request in self.waiting:
            self.waiting.remove(request)
            self.rows -= request.rows

    def taken(self, rows_max: int) -> list[Request]:
        """The first, and those behind it as long as they can be joined to so many rows; nobody is passed."""
        waiting = self.waiting
        batch = [waiting.popleft()]
        rows = batch[0].rows
        while waiting and not (batch[0].alone or waiting[0].alone):
            if waiting[0].shapes != batch[0].shapes or rows + waiting[0].rows > rows_max:
                break
            batch.append(waiting.popleft())
            rows += batch[-1].rows
        self.rows -= rows
        return batch

    def learn(self, rows: int, took_s: float) -> None:
        """A run of so many rows took so long."""
        self._row_s += (took_s / rows - self._row_s) * (_LEARNT if self._row_s else 1)

    def _lets_pass(self, waiting: Request, request: Request) -> bool:
        more = waiting.rows - request.rows
        return more > 0 and waiting.submitted_s + PATIENCE * self._row_s * more > request.submitted_s
