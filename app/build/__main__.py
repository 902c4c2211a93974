"""The build child: `python -m app.build WORKDIR` builds what the folder's spec.json asks for.

Exit status: 0 with result.json, 3 with the failure.json of an expected failure, 4 with that of a bug.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from app.build.process import be_first_to_go, die_with_parent
from app.build.workdir import WorkDir
from app.domain.errors import BuildCrashed, BuildOutOfMemory, ServiceError
from app.domain.jobs import Failure

log = logging.getLogger("app.build")

EXPECTED_FAILURE = 3
BUG = 4


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m app.build", description="Build the engine of a work folder.")
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--parent", type=int, help="id of the process without which this one must not live")
    parsed = parser.parse_args(arguments)
    if parsed.parent is not None:
        die_with_parent(parsed.parent)
        be_first_to_go()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    return _build(WorkDir(parsed.workdir))


def _build(work: WorkDir) -> int:
    try:
        from app.build.recipe import build  # here, so that a runtime that cannot be imported is told like any failure
        from app.build.report import Report

        work.write_result(build(work, work.read_spec(), Report(work)))
    except ServiceError as error:
        log.error("%s: %s", error.code, error.detail)
        cause = _cause(error).replace(f"{work.root}/", "")
        work.write_failure(Failure(error.code, error.detail, error.hint, cause))
        return EXPECTED_FAILURE
    except MemoryError:
        log.exception("out of memory")
        hint = "Lower the largest batch (max_shapes), unload engines, or add swap."
        work.write_failure(Failure(BuildOutOfMemory.code, "The system has no memory left for the build.", hint))
        return EXPECTED_FAILURE
    except Exception as error:
        log.exception("The build stopped on a bug.")
        words = f"{type(error).__name__}: {error}"
        work.write_failure(
            Failure(
                BuildCrashed.code,
                "The build stopped on an error that it does not know.",
                "Read the job's log; if the model is fine elsewhere, report it with the log.",
                words.splitlines()[-1][:500],
            )
        )
        return BUG
    return 0


def _cause(error: ServiceError) -> str:
    """The library's own first line, where one is behind the failure and is not in its message already."""
    words = str(error.__cause__ or "").strip().splitlines()
    return words[0][:500] if words and words[0] not in error.detail else ""


if __name__ == "__main__":
    sys.exit(main())
