"""The same build with less memory, step by step: what is tried after the system has ended one for want of memory."""

from __future__ import annotations

from dataclasses import replace

from app.domain.builds import BuildOptions

_LEVEL = 3  # TensorRT's own optimisation level
_LOWERED = 2  # levels at once: a build takes minutes, and each level less leaves out whole kinds of kernels
_WORKSPACE_MIB_MIN = 16  # with less, kernels that nothing replaces find no room


def lighter(options: BuildOptions, device_mib: int, *, has_levels: bool) -> tuple[BuildOptions, ...]:
    """Half the workspace, then a lower optimisation level beside it; without those that change nothing.

    Args:
        device_mib: memory of the device, which is the workspace that TensorRT takes when none is given.
        has_levels: whether this version has optimisation levels.
    """
    workspace_mib = max(_WORKSPACE_MIB_MIN, (options.workspace_mib or device_mib) // 2)
    level = max(0, (_LEVEL if options.optimization_level is None else options.optimization_level) - _LOWERED)
    found = [options]
    if options.workspace_mib is None or workspace_mib < options.workspace_mib:
        found.append(replace(options, workspace_mib=workspace_mib))
    if has_levels and options.optimization_level != 0:
        found.append(replace(found[-1], optimization_level=level))
    return tuple(found[1:])
