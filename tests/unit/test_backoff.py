"""Pauses before a process is started again."""

from __future__ import annotations

from app.backoff import MOST_S, STEADY_S, Backoff


def test_pauses_double_up_to_a_bound_while_what_is_started_ends_soon() -> None:
    backoff = Backoff()

    pauses = [backoff.after(lived_s=0.1) for _ in range(9)]

    assert pauses[:4] == [0.5, 1, 2, 4]
    assert pauses[-2:] == [MOST_S, MOST_S]


def test_after_one_that_lived_long_the_next_start_is_quick_again() -> None:
    backoff = Backoff()
    for _ in range(9):
        backoff.after(lived_s=0.1)

    assert backoff.after(lived_s=STEADY_S + 1) == 0.5
