"""The OpenAPI document is true: fuzzed requests find no 5xx and no answer that it does not describe."""

from __future__ import annotations

from pathlib import Path

from tests.fuzzing import fuzzed


def test_fuzzed_requests_find_no_server_error_and_no_undocumented_answer(tmp_path: Path) -> None:
    status, report, log = fuzzed(tmp_path, "--max-examples", "4", "--seed", "1")

    assert status == 0, report[-10_000:]
    assert "Tested: 0" not in report and "generated" in report
    assert "Traceback" not in log and "unexpected error" not in log
