"""The command refuses what it cannot work with in a line, and says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.__main__ import main


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("PORT", "abc", "integer"),
        ("PORT", "99999", "65535"),
        ("KEEP_ALIVE_S", "-1", "0"),
        ("LOG_FORMAT", "xml", "'text' or 'json'"),
        ("LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_a_wrong_setting_is_told_with_what_is_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str, wanted: str
) -> None:
    monkeypatch.setenv(f"JETFORGE_{name}", value)

    status = main(["serve"])

    told = capsys.readouterr().err
    assert status == 2
    assert f"JETFORGE_{name} is '{value}'" in told and wanted in told
    assert "docs/configuration.md" in told


def test_a_wrong_flag_is_told_as_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "99999"]) == 2
    assert "--port is '99999'" in capsys.readouterr().err


def test_settings_of_the_service_keep_neither_help_nor_the_clients_verbs_from_working(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JETFORGE_PORT", "abc")

    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    status = main(["jobs", "--url", "http://127.0.0.1:9"])

    assert ended.value.code == 0
    assert status == 1 and "unreachable" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb", [["serve"], ["migrate"], ["restore", "backup.tar"], ["keys", "add", "x", "--role", "read"]]
)
@pytest.mark.parametrize("folder", ["FILE", "FILE/below", "/proc/nothing/below", "~nobody-of-this-name/data"])
def test_a_data_folder_that_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: list[str], folder: str
) -> None:
    (tmp_path / "file").touch()

    status = main([*verb, "--data-dir", folder.replace("FILE", str(tmp_path / "file"))])

    told = capsys.readouterr().err
    assert status == 2
    assert told.startswith("jetforge: The data folder") and "--data-dir" in told
