"""A long run of what tests/e2e/test_schemathesis.py does in short, with seeds of its own."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.fuzzing import fuzzed


def main() -> int:
    seconds = sys.argv[1] if len(sys.argv) > 1 else "300"
    with tempfile.TemporaryDirectory() as folder:
        status, report, log = fuzzed(Path(folder), "--max-time", seconds, "--max-examples", "1000")
    print(report)
    defects = [line for line in log.splitlines() if "Traceback" in line or "unexpected error" in line]
    print(f"{len(defects)} unexpected errors in the service's log", *defects[:10], sep="\n")
    return status or int(bool(defects))


if __name__ == "__main__":
    sys.exit(main())
