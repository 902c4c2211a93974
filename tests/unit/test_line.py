"""Who is next: in the order of arrival, but small requests need not wait for all of the large ones."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import ServiceError
from app.serving.line import PATIENCE, Line
from app.serving.requests import Request, Run

ROW_S = 0.5
EVERYTHING = 10**6  # rows of a run


class Nobody:
    """Who waits for a request's answer here."""

    def done(self) -> bool:
        return False

    def set_result(self, run: Run) -> None: ...

    def set_exception(self, error: ServiceError) -> None: ...


def request(rows: int, submitted_s: float) -> Request:
    made = Request({"x": np.zeros((rows, 1), np.float32)}, rows, Nobody())
    made.submitted_s = submitted_s
    return made


def line(*requests: Request, row_s: float = ROW_S) -> Line:
    """They have come in this order; runs take so long for each row."""
    made = Line()
    if row_s:
        made.learn(10, 10 * row_s)
    for one in requests:
        made.add(one)
    return made


def left(of: Line) -> list[Request]:
    """Everybody, in turn."""
    return [one for _ in range(len(of.waiting)) for one in of.taken(1)]


def test_equals_are_served_in_the_order_of_arrival() -> None:
    requests = [request(3, 0), request(3, 1), request(3, 2)]

    assert left(line(*requests)) == requests


def test_a_small_request_passes_larger_ones_that_have_not_waited_long() -> None:
    large, larger, small = request(8, 0), request(16, 1), request(1, 2)

    assert left(line(large, larger, small)) == [small, large, larger]


def test_a_large_request_is_passed_no_more_once_it_has_waited_some_times_as_long_as_it_runs() -> None:
    waits_s = PATIENCE * ROW_S * (8 - 1)
    large, in_time, late = request(8, 0), request(1, waits_s - 0.01), request(1, waits_s + 0.01)

    assert left(line(large, in_time, late)) == [in_time, large, late]


def test_a_large_request_passes_nobody() -> None:
    requests = [request(1, 0), request(4, 0), request(8, 0)]

    assert left(line(*requests)) == requests


def test_who_must_not_pass_one_passes_nobody_before_that_one_either() -> None:
    large, small, next_large, next_small = request(8, 0), request(1, 0), request(8, 0), request(1, 0)

    assert left(line(large, small, next_large, next_small)) == [small, next_small, large, next_large]


def test_nobody_passes_before_it_is_known_how_long_runs_take() -> None:
    requests = [request(8, 0), request(1, 0.001)]

    assert left(line(*requests, row_s=0)) == requests


def test_rows_are_counted_whoever_comes_and_goes() -> None:
    large, small = request(8, 0), request(1, 0)
    waiting = line(large, small)
    assert waiting.rows == 9

    waiting.remove(small)
    waiting.remove(small)
    assert waiting.rows == 8
    assert waiting.taken(EVERYTHING) == [large]
    waiting.put_back(large)
    assert (waiting.rows, [*waiting.waiting]) == (8, [large])


@given(st.lists(st.tuples(st.integers(1, 32), st.floats(0, 20)), max_size=30))
def test_everybody_gets_a_turn_within_the_patience_of_those_who_came_before(come: list[tuple[int, float]]) -> None:
    at_s, requests = 0.0, []
    for rows, later_s in come:
        at_s += later_s
        requests.append(request(rows, at_s))

    order = left(line(*requests))

    assert sorted(map(id, order)) == sorted(map(id, requests))
    for place, one in enumerate(order):
        for later in order[place + 1 :]:  # `one` has passed them
            if requests.index(later) < requests.index(one):
                assert later.rows > one.rows
                assert one.submitted_s - later.submitted_s <= PATIENCE * ROW_S * (later.rows - one.rows)
