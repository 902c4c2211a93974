from __future__ import annotations

from pathlib import Path

import pytest

from app.access.addresses import is_loopback, neighbourhood
from app.access.audit import FILES, AuditLog
from app.access.buckets import Buckets
from app.access.origins import Origins
from app.access.uploads import UploadSlots
from app.domain.access import digest_of, new_key
from app.domain.errors import CrossSiteRefused, HostRefused, StartRefused, TooManyUploads


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


@pytest.mark.parametrize(
    ("named", "host", "opens"),
    [
        ("", "jetson.lab.example", False),
        ("jetson.lab.example", "JETSON.lab.example.:8000", True),
        (".lab.example", "jetson.lab.example", True),
        (".lab.example", "lab.example.evil.example", False),
        ("jetson.lab.example", "evil.jetson.lab.example", False),
        ("*", "evil.example", True),
        ("", "[2001:db8::7]:8000", True),
        ("", "api.localhost:8000", True),
    ],
)
def test_a_name_opens_when_it_is_the_services_own_or_was_named(named: str, host: str, opens: bool) -> None:
    origins = Origins(named.split(), [])

    if opens:
        origins.check_host(host.encode())
    else:
        with pytest.raises(HostRefused):
            origins.check_host(host.encode())


def test_a_named_origin_may_write_and_its_neighbours_may_not() -> None:
    origins = Origins([], ["https://Fleet.example"])

    origins.check_site("POST", b"jetson", b"https://fleet.example", b"cross-site")
    for foreign in (b"http://fleet.example", b"https://fleet.example:444", b"https://fleet.example.evil.example"):
        with pytest.raises(CrossSiteRefused):
            origins.check_site("POST", b"jetson", foreign, b"cross-site")
        origins.check_site("GET", b"jetson", foreign, b"cross-site")


@pytest.mark.parametrize("origin", ["fleet.example", "https://fleet.example/page", "file:///x", "https://", "null"])
def test_what_is_no_origin_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(StartRefused, match="JETFORGE_ALLOWED_ORIGINS"):
        Origins([], [origin])


def test_upload_slots_are_counted_for_each_client_and_for_all_and_given_back() -> None:
    slots = UploadSlots(total=2, per_client=1)

    with slots.slot("a"), slots.slot("b"):
        for client in ("a", "c"):
            with pytest.raises(TooManyUploads), slots.slot(client):
                pass
    with slots.slot("c"), slots.slot("a"):
        pass


def noted(audit: AuditLog, *paths: str) -> None:
    for path in paths:
        audit.write("laptop", "k1", "192.0.2.1", "DELETE", path, 204)


def test_the_audit_log_tells_the_newest_first(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "audit", 1 << 20)

    noted(audit, "/a", "/b", "/c")

    assert [entry["path"] for entry in audit.latest(2)] == ["/c", "/b"]
    assert [entry["path"] for entry in AuditLog(tmp_path / "audit", 1 << 20).latest(10)] == ["/c", "/b", "/a"]


def test_the_audit_log_never_grows_over_its_size_and_loses_its_oldest_part(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path, 4000)

    noted(audit, *(f"/{number}" for number in range(100)))

    kept = [int(entry["path"][1:]) for entry in audit.latest(1000)]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4000
    assert len(list(tmp_path.iterdir())) == FILES
    assert kept == list(range(99, 99 - len(kept), -1)) and len(kept) > 10


def test_a_line_of_the_audit_log_that_was_cut_off_loses_no_other(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path, 1 << 20)
    noted(audit, "/a")
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(b'{"at": "2026')

    noted(audit, "/b\u2028\n/forged")

    assert [entry["path"] for entry in audit.latest(10)] == ["/b\u2028\n/forged", "/a"]
