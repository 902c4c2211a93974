"""The compilers of this machine, for what the benchmarks have in C and C++."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

_COMPILERS = {".c": ("CC", "cc", "gcc"), ".cc": ("CXX", "c++", "g++")}  # the variable that names one, usual names


def compiled(source: Path, target: Path, *arguments: str | Path) -> Path:
    """The target, made of the source; exits with a message where there is no compiler for it.

    Args:
        arguments: flags and libraries, after the source.
    """
    variable, *names = _COMPILERS[source.suffix]
    compiler = os.environ.get(variable) or next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        sys.exit(f"{source.name} has to be compiled: apt-get install {names[-1]}, or name a compiler in {variable}.")
    subprocess.run([compiler, "-O2", "-o", target, source, *arguments], check=True)
    return target
