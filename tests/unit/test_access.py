from __future__ import annotations

import pytest

from app.access.addresses import is_loopback, neighbourhood
from app.access.buckets import Buckets
from app.domain.access import digest_of, new_key


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_bucket_gives_what_it_holds_then_says_how_long_to_wait() -> None:
    clock = Clock()
    buckets = Buckets(monotonic_s=clock)

    waits = [buckets.take("a", per_s=2, size=3) for _ in range(4)]

    assert waits == [0, 0, 0, 0.5]


def test_a_bucket_fills_again_with_time_and_never_over_its_size() -> None:
    clock = Clock()
    buckets = Buckets(monotonic_s=clock)
    for _ in range(3):
        buckets.take("a", per_s=2, size=3)

    clock.now_s = 0.5
    assert buckets.take("a", per_s=2, size=3) == 0
    assert buckets.take("a", per_s=2, size=3) > 0
    clock.now_s = 1000
    assert [buckets.take("a", per_s=2, size=3) for _ in range(4)] == [0, 0, 0, 0.5]


def test_one_name_does_not_empty_the_bucket_of_another() -> None:
    buckets = Buckets(monotonic_s=Clock())
    buckets.take("a", per_s=1, size=1)

    assert buckets.take("b", per_s=1, size=1) == 0
    assert buckets.take("a", per_s=1, size=1) == 1


def test_a_clock_that_goes_back_takes_nothing_away() -> None:
    clock = Clock()
    buckets = Buckets(monotonic_s=clock)
    buckets.take("a", per_s=1, size=2)

    clock.now_s = -100

    assert buckets.take("a", per_s=1, size=2) == 0


def test_only_so_many_names_are_remembered() -> None:
    buckets = Buckets(names_max=2, monotonic_s=Clock())
    for name in ("a", "b", "c"):
        buckets.take(name, per_s=1, size=1)

    assert buckets.take("c", per_s=1, size=1) > 0
    assert buckets.take("a", per_s=1, size=1) == 0  # forgotten: full again


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "192.168.1.4", "localhost.evil.example", "", "jetson")],
)
def test_loopback_is_what_only_this_machine_can_reach(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_an_ipv6_site_counts_as_one_address_and_ipv4_addresses_each() -> None:
    assert neighbourhood("2001:db8::1") == neighbourhood("2001:db8::ffff:1") != neighbourhood("2001:db8:0:1::1")
    assert neighbourhood("192.0.2.1") == neighbourhood("::ffff:192.0.2.1") != neighbourhood("192.0.2.2")
    assert neighbourhood("fe80::1%eth0") == neighbourhood("fe80::2%eth0")
    assert neighbourhood("") == ""


def test_keys_differ_and_their_digest_does_not_hold_them() -> None:
    keys = {new_key() for _ in range(100)}

    assert len(keys) == 100
    assert all(len(key) >= 43 and key.encode() not in digest_of(key.encode()) for key in keys)
