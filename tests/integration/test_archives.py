from __future__ import annotations

import io
import random
import stat
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain.errors import ArchiveRejected
from app.storage.archives import ArchiveLimits, checked_archive, read_entry, usable_entries

MIB = 1 << 20
LIMITS = ArchiveLimits(entries_max=100, unpacked_bytes_max=64 * MIB)


def zip_of(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content, method)
    return buffer.getvalue()


def entry(name: str, mode: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.fixture
def check(tmp_path):
    def check(content: bytes, limits: ArchiveLimits = LIMITS) -> int:
        path = tmp_path / "samples.zip"
        path.write_bytes(content)
        return checked_archive(path, limits)

    return check


def test_the_files_of_an_archive_are_counted_without_the_clutter_around_them(check):
    content = zip_of(
        ("images/", b""),
        ("images/a.png", b"1"),
        ("b.jpeg", b"2"),
        ("__MACOSX/images/._a.png", b""),
        ("images/.DS_Store", b""),
        (".cache/c.png", b"3"),
    )

    assert check(content) == 2


def test_an_archive_with_a_comment_is_read(check, tmp_path):
    path = tmp_path / "commented.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"1")
        archive.comment = b"made by hand"

    assert checked_archive(path, LIMITS) == 1


def test_a_zip64_archive_is_read_and_counted(check):
    content = as_zip64(zip_of(*((f"{i}.png", b"1") for i in range(3))))

    assert check(content) == 3
    with pytest.raises(ArchiveRejected, match="more than 2 entries"):
        check(content, ArchiveLimits(entries_max=2, unpacked_bytes_max=MIB))


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 a JPEG", b"PK\x05\x06"])
def test_what_is_not_a_zip_is_refused(check, content):
    with pytest.raises(ArchiveRejected, match="not a zip"):
        check(content)


def test_a_zip_that_ends_early_is_refused_as_cut_off(check):
    with pytest.raises(ArchiveRejected, match="cut off"):
        check(zip_of(("a.png", bytes(100)))[:-30])


def test_an_archive_without_files_is_refused(check):
    for content in (zip_of(), zip_of(("images/", b""), (".hidden", b"1"))):
        with pytest.raises(ArchiveRejected, match="no files"):
            check(content)


def test_too_many_entries_are_refused(check):
    with pytest.raises(ArchiveRejected, match="more than 100 entries"):
        check(zip_of(*((f"{i}.png", b"") for i in range(101))))


def test_too_many_entries_are_refused_when_the_archive_claims_to_have_one(check):
    content = bytearray(zip_of(*((f"{i}.png", b"") for i in range(101))))
    struct.pack_into("<2H", content, len(content) - 22 + 8, 1, 1)

    with pytest.raises(ArchiveRejected, match="more than 100 entries"):
        check(bytes(content))


def test_a_huge_directory_is_refused_before_it_is_read(check):
    content = bytearray(zip_of(("a.png", b"1")))
    struct.pack_into("<L", content, len(content) - 22 + 12, 0xFFFFFFF0)

    with pytest.raises(ArchiveRejected, match="more than 100 entries"):
        check(bytes(content))


@pytest.mark.parametrize(
    "at, change",
    [
        (0, b"XX"),  # not an entry's signature
        (28, struct.pack("<H", 5000)),  # a name beyond the end
        (6, struct.pack("<H", 99)),  # needs a version of the format that does not exist
    ],
)
def test_a_damaged_directory_is_refused(check, at, change):
    content = bytearray(zip_of(("a.png", b"1"), ("b.png", b"2")))
    at += content.index(b"PK\x01\x02")
    content[at : at + len(change)] = change

    with pytest.raises(ArchiveRejected, match="damaged"):
        check(bytes(content))


def test_a_directory_that_begins_before_the_file_is_refused(check):
    content = bytearray(zip_of(("a.png", b"1")))
    struct.pack_into("<L", content, len(content) - 22 + 12, 5000)

    with pytest.raises(ArchiveRejected, match="damaged"):
        check(bytes(content))


def test_a_name_that_is_not_the_text_it_claims_to_be_is_refused(check):
    content = zip_of(("é.png", b"1")).replace("é".encode(), b"\xff\xfe")

    with pytest.raises(ArchiveRejected, match="damaged"):
        check(content)


def test_an_archive_that_declares_too_much_is_refused(check):
    content = zip_of(("a.npy", bytes(2000)), ("b.npy", bytes(2000)))

    with pytest.raises(ArchiveRejected, match="unpacks to 4,000 bytes; at most 3,999"):
        check(content, ArchiveLimits(entries_max=100, unpacked_bytes_max=3999))


def test_a_zip_bomb_is_refused(check):
    with pytest.raises(ArchiveRejected, match=r"'bomb' unpacks to .* more than 200 times"):
        check(zip_of(("noise", bytes(range(256)) * 400), ("bomb", bytes(16 * MIB)), ("x", random_bytes(MIB))))


def test_a_bomb_of_many_small_entries_is_refused(check):
    with pytest.raises(ArchiveRejected, match="The archive unpacks to"):
        check(zip_of(*((f"{i}.bmp", bytes(MIB // 2)) for i in range(40))))


def test_a_blank_image_that_shrinks_well_is_no_bomb(check):
    assert check(zip_of(("blank.bmp", bytes(MIB // 2)))) == 1


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../up.png", "a/../../up.png", "C:/x.png", "c:x.png", "a\\b.png", "a/..", "..", "a\0.png"]
)
def test_a_path_that_could_leave_the_archive_is_refused(check, name):
    info = zipfile.ZipInfo("placeholder")
    info.filename = name  # past ZipInfo's own clean-up
    with pytest.raises(ArchiveRejected, match="leaves it"):
        check(zip_of(("a.png", b"1"), (info, b"2")))


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_and_special_files_are_refused(check, mode):
    with pytest.raises(ArchiveRejected, match="link or a special file"):
        check(zip_of(("a.png", b"1"), (entry("b.png", mode), b"/etc/passwd")))


def test_plain_files_of_any_system_are_taken(check):
    assert check(zip_of((entry("a.png", stat.S_IFREG | 0o644), b"1"), (entry("b.png", 0), b"2"))) == 2


def test_an_encrypted_archive_is_refused(check):
    content = bytearray(zip_of(("a.png", b"1")))
    content[content.index(b"PK\x01\x02") + 8] |= 1

    with pytest.raises(ArchiveRejected, match="encrypted"):
        check(bytes(content))


@pytest.mark.parametrize("name", ["more.zip", "more.TAR", "a/more.tar.gz", "more.7z", "more.tgz", "more.xz"])
def test_an_archive_in_the_archive_is_refused(check, name):
    with pytest.raises(ArchiveRejected, match="another archive"):
        check(zip_of(("a.png", b"1"), (name, b"2")))


def test_a_compression_that_can_ask_for_any_memory_is_refused(check):
    with pytest.raises(ArchiveRejected, match="compression"):
        check(zip_of(("a.png", b"1"), method=zipfile.ZIP_LZMA))


def test_an_entry_is_unpacked(tmp_path):
    content = random_bytes(300_000)

    assert unpacked(tmp_path, zip_of(("a.npy", content)), limit_bytes=300_000) == content


def test_an_entry_over_the_limit_is_not_unpacked(tmp_path):
    with pytest.raises(ArchiveRejected, match="more than 1,000 bytes"):
        unpacked(tmp_path, zip_of(("a.npy", bytes(1001))), limit_bytes=1000)


@pytest.mark.parametrize("declared", [10, 4999, 5001, 100_000])
def test_an_entry_that_lies_about_its_size_is_refused(tmp_path, declared):
    content = bytearray(zip_of(("a.npy", bytes(5000))))
    struct.pack_into("<L", content, content.index(b"PK\x01\x02") + 24, declared)

    with pytest.raises(ArchiveRejected):
        unpacked(tmp_path, bytes(content), limit_bytes=MIB)


def test_an_entry_that_would_end_after_the_file_is_refused(tmp_path):
    content = bytearray(zip_of(("a.npy", bytes(5000)), method=zipfile.ZIP_STORED))
    struct.pack_into("<2L", content, content.index(b"PK\x01\x02") + 20, 100_000, 100_000)

    with pytest.raises(ArchiveRejected, match="damaged"):
        unpacked(tmp_path, bytes(content), limit_bytes=MIB)


def test_an_entry_that_would_begin_before_the_file_is_refused(check, tmp_path):
    content = bytearray(zip_of(("a.npy", bytes(5000))))
    struct.pack_into("<L", content, len(content) - 22 + 16, 5000)  # where the directory is said to begin

    with pytest.raises(ArchiveRejected, match="damaged"):
        check(bytes(content))  # newer versions of Python see it here
        unpacked(tmp_path, bytes(content), limit_bytes=MIB)


def test_what_is_over_the_limit_is_never_held_in_memory(tmp_path):
    content = zip_of(("a.npy", bytes(32 * MIB)))
    tracemalloc.start()
    with pytest.raises(ArchiveRejected):
        unpacked(tmp_path, content, limit_bytes=1000)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak_bytes < 4 * MIB


def test_a_damaged_entry_is_refused(tmp_path):
    content = bytearray(zip_of(("a.npy", random_bytes(5000))))
    content[2000] ^= 0xFF

    with pytest.raises(ArchiveRejected, match="damaged"):
        unpacked(tmp_path, bytes(content), limit_bytes=MIB)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6), st.integers(0, 400))
def test_no_damage_whatsoever_ends_in_anything_but_a_clear_answer(tmp_path, changes, cut):
    content = bytearray(zip_of(("images/a.png", b"1" * 50), ("b.png", b"2"), ("c", b"")))
    for at, value in changes:
        content[at % len(content)] = value
    path = tmp_path / "damaged.zip"
    path.write_bytes(content[: len(content) - cut] if cut < 40 else content)

    try:
        checked_archive(path, LIMITS)
        with zipfile.ZipFile(path) as archive:
            for info in usable_entries(archive):
                assert len(read_entry(archive, info, MIB)) <= MIB
    except ArchiveRejected as error:
        assert error.detail and error.hint


def unpacked(folder: Path, content: bytes, limit_bytes: int) -> bytes:
    path = folder / "samples.zip"
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        return read_entry(archive, archive.infolist()[0], limit_bytes)


def random_bytes(length: int) -> bytes:

    return random.Random(1).randbytes(length)


def as_zip64(content: bytes) -> bytes:
    """The archive with the records that an archive of more than 65,535 entries has at its end."""
    _, _, _, _, entries, size, offset, _ = struct.unpack("<4s4H2LH", content[-22:])
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, entries, entries, size, offset)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(content) - 22, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return content[:-22] + record + locator + end
