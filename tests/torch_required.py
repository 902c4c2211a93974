"""Whether tests that need PyTorch run here. Call `needs_torch()` before importing what imports torch."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import pytest

HAS_TORCH = find_spec("torch") is not None


def needs_torch() -> None:
    """Skip the module where PyTorch is not installed and may be missing; fail where it has to be there."""
    if HAS_TORCH:
        return
    if os.environ.get("JETFORGE_TEST_TORCH") == "required" or sys.version_info[:2] == (3, 11):
        pytest.fail("PyTorch is missing: scripts/test installs it.", pytrace=False)
    pytest.skip("PyTorch is not installed for this version of Python", allow_module_level=True)
