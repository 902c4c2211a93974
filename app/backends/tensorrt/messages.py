"""TensorRT's log text → its cause and what to do.

The texts are those of TensorRT 8.5 to 11, its ONNX parser, the CUDA runtime and the dynamic loader.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Explanation:
    cause: str  # a sentence
    fix: str  # what to do
    is_stale: bool = False  # the engine was made for another device or version
    is_memory: bool = False  # there was too little


@dataclass(frozen=True)
class _Rule:
    pattern: str
    cause: str  # may use the pattern's groups
    fix: str
    is_stale: bool = field(default=False, kw_only=True)
    is_memory: bool = field(default=False, kw_only=True)


_REBUILD = "Build the engine again on this device."
_RULES = (  # the likeliest cause first: one failure logs several of these lines
    _Rule(
        r"expecting library version (?P<now>[\d.]+) got (?P<then>[\d.]+)",
        "The engine was built by TensorRT {then}; this is {now}.",
        _REBUILD,
        is_stale=True,
    ),
    _Rule(
        r"Version tag does not match", "The engine was built by another version of TensorRT.", _REBUILD, is_stale=True
    ),
    _Rule(
        r"expecting compute (?P<now>[\d.]+),? got (?:compute )?(?P<then>[\d.]+)",
        "The engine was built for compute capability {then}; this GPU has {now}.",
        _REBUILD,
        is_stale=True,
    ),
    _Rule(r"incompatible device|expecting compute", "The engine was built for another GPU.", _REBUILD, is_stale=True),
    _Rule(
        r"[Mm]agic ?[Tt]ag|Serialized engine is (?:empty|too small)|Trying to deserialize .*(?:truncated|corrupt)",
        "The file is not a TensorRT engine, or it is damaged.",
        "Upload the engine file again, unchanged; or build it from the model.",
    ),
    _Rule(
        r"CUDA initialization failure with error: 35|CUDA_ERROR_SYSTEM_DRIVER_MISMATCH|driver version is insufficient",
        "There is no NVIDIA driver, or it is too old for this CUDA.",
        "Install a newer driver; in a container, start it with --runtime nvidia.",
    ),
    _Rule(
        r"CUDA initialization failure with error: (?P<code>\d+)",
        "CUDA could not be started (error {code}).",
        "Check with nvidia-smi, or tegrastats on a Jetson, that the GPU is there; in a container, start it with"
        " --runtime nvidia.",
    ),
    _Rule(
        r"SymbolAddress for \w+ could not be loaded|Unable to load library: \S*cu(?:blas|dnn)",
        "TensorRT wants cuBLAS or cuDNN, which are not installed.",
        "Build with tactic_sources set to an empty list, so that TensorRT uses its own kernels; or install them.",
    ),
    _Rule(
        r"NvMapMem\w*.*error 12|NvMapMem\w*Alloc\w*.*error",
        "The Jetson's memory is too fragmented for one large block.",
        "Unload engines, or restart the board; then try again.",
        is_memory=True,
    ),
    _Rule(
        r"no optimization profile",
        "The model has dynamic inputs and no shapes were given for them.",
        "Give min_shapes, opt_shapes and max_shapes, as in -F max_shapes=input:8x3x224x224.",
    ),
    _Rule(
        r"no scaling factors detected",
        "INT8 was asked for without calibration samples and without Q/DQ nodes in the graph.",
        "Send a calibration archive, or build with precision fp16.",
    ),
    _Rule(
        r"No importer registered for op: (?P<op>\w+)",
        "TensorRT has no operator {op}.",
        "Export with a lower opset, simplify the model, or replace {op} by operators that TensorRT has.",
    ),
    _Rule(
        r"getPluginCreator(?:\(\))? could not find [Pp]lugin:? (?P<op>\w+)",
        "TensorRT has no operator or plugin {op}.",
        "Export with a lower opset, simplify the model, or replace {op} by operators that TensorRT has.",
    ),
    _Rule(
        r"Plugin not found",
        "The model uses an operator that TensorRT lacks and for which no plugin is installed.",
        "Export with a lower opset, simplify the model, or replace the operator.",
    ),
    _Rule(
        r"Unsupported ONNX data type: (?P<dtype>\w+)",
        "TensorRT cannot carry tensors of type {dtype}.",
        "Export the model with float32, float16, int32 or int64 tensors.",
    ),
    _Rule(
        r"UINT8.*(?:Cast|cast)|(?:Cast|cast).*UINT8|kUINT8|[Uu]nsupported.*\bUInt8\b",
        "TensorRT takes uint8 tensors only as inputs or outputs that are cast from or to floats at once.",
        "Cast the uint8 input to float in the first node of the model.",
    ),
    _Rule(
        r"insufficient workspace",
        "A layer needs more scratch memory than the workspace allows.",
        "Raise workspace_mib, or leave it out.",
    ),
    _Rule(
        r"Could not find any implementation for node (?P<node>\S+?)\.?(?:\s|$|\))",
        "TensorRT found no implementation for the node {node}: too little workspace or memory, or it is not supported"
        " in this precision.",
        "Raise workspace_mib; if that does not help, build with precision fp32 or with simplify=false.",
    ),
    _Rule(
        r"Could not find any implementation",
        "TensorRT found no implementation for a node: too little workspace or memory, or it is not supported here.",
        "Raise workspace_mib; if that does not help, build with precision fp32 or with simplify=false.",
    ),
    _Rule(
        r"^Killed$|signal 9|SIGKILL",
        "The build was ended by the system, most likely for want of memory.",
        "Lower workspace_mib, the largest batch or optimization_level; or add swap.",
        is_memory=True,
    ),
    _Rule(
        r"[Oo]ut ?[Oo]f ?[Mm]emory|cudaErrorMemoryAllocation|Requested amount of (?:GPU )?memory",
        "There was not enough device memory.",
        "Unload engines, or lower workspace_mib, the largest batch or optimization_level.",
        is_memory=True,
    ),
    _Rule(
        r"Profile \d+ has been chosen by another IExecutionContext|no available optimization profile",
        "The engine has fewer optimisation profiles than contexts are opened.",
        "Lower the setting contexts (JETFORGE_CONTEXTS), or build the engine again with builder=api.",
    ),
    _Rule(
        r"Static dimension mismatch while setting input shape(?: for (?P<input>\w+))?",
        "An input has another length on an axis that the engine fixes.",
        "Send the shape that the engine's signature shows, or build the engine for this one.",
    ),
    _Rule(
        r"does not satisfy any optimization profiles|exceed min ~ max range",
        "An input has a shape outside those that the engine was built for.",
        "Send a shape within the engine's ranges, or build it with max_shapes that include this one.",
    ),
    _Rule(
        r"(?P<library>lib(?:nvinfer|nvonnxparser|nvinfer_plugin|nvparsers)\w*\.so[.\d]*): cannot open shared object",
        "TensorRT's library {library} is not where the loader looks.",
        "Add its folder to LD_LIBRARY_PATH (on a Jetson /usr/lib/aarch64-linux-gnu), or use the container image of"
        " this JetPack.",
    ),
    _Rule(
        r"(?P<library>lib(?:cuda|nvcuda)\.so[.\d]*): cannot open shared object",
        "The NVIDIA driver's library {library} is not there.",
        "Install the driver; in a container, start it with --runtime nvidia.",
    ),
    _Rule(
        r"(?P<library>lib(?:cu\w+|nv\w+)\.so[.\d]*): cannot open shared object",
        "The library {library}, which TensorRT needs, is not where the loader looks.",
        "Install it from this JetPack or CUDA release, or add its folder to LD_LIBRARY_PATH.",
    ),
    _Rule(
        r"No module named '(?P<module>tensorrt|tensorrt_\w+)'",
        "TensorRT's Python module is not installed.",
        "On a Jetson: apt install python3-libnvinfer, and make the virtual environment with --system-site-packages."
        " Elsewhere: pip install tensorrt.",
    ),
    _Rule(
        r"No module named '(?P<module>pycuda)[\w.]*'",
        "pycuda is not installed.",
        "pip install pycuda (it needs nvcc and CUDA's headers to build).",
    ),
    _Rule(
        r"different models of devices",
        "The engine was built on another model of GPU; it may be slow.",
        _REBUILD,
    ),
)


def explained(lines: Iterable[str]) -> Explanation | None:
    """The cause that the lines show, and what to do; None when none of them is known."""
    texts = [line.strip() for line in lines]
    for rule in _RULES:
        for text in texts:
            match = re.search(rule.pattern, text)
            if match is not None:
                groups = {name: value or "" for name, value in match.groupdict().items()}
                return Explanation(
                    rule.cause.format(**groups), rule.fix.format(**groups), rule.is_stale, rule.is_memory
                )
    return None


def words(lines: Iterable[str]) -> str:
    """The first of the lines, without TensorRT's own source positions; "" when there is none."""
    first = next((line for line in lines if line.strip()), "")
    text = re.sub(r"\[\w+\.(?:cpp|h)::[^\]]*\] ?|Error Code \d+: |^\d+: |\S*/(?=[\w.]+\.(?:cpp|h)\b)", "", first)
    return " ".join(text.split())[:500]
