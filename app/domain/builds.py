"""What a build is asked for, what it is valid under, and what it proved."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import Enum
from functools import cached_property
from typing import Any, NewType

from app.domain.errors import InvalidName
from app.domain.preprocess import Preprocess
from app.domain.tensors import Shape, Signature

Digest = NewType("Digest", str)  # "sha256:" and 64 hex digits: the name of stored bytes

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
RECIPE_REVISION = 3  # raise it when the build recipe changes what it produces: old engines are then not reused


class ModelFormat(str, Enum):
    ONNX = "onnx"
    ONNX_ARCHIVE = "onnx_archive"  # a zip or tar of one .onnx file and the files that hold its weights
    TORCHSCRIPT = "torchscript"  # torch.jit.save: scripted or traced
    PT2 = "pt2"  # torch.export.save

    @property
    def is_torch(self) -> bool:
        """Whether it takes PyTorch to read it, and an export to ONNX to build it."""
        return self in (ModelFormat.TORCHSCRIPT, ModelFormat.PT2)


class Precision(str, Enum):
    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"  # layers that quantise; the others run in the next best precision
    AUTO = "auto"  # the fastest of the others that stays within its tolerance; never an engine's own
    UNKNOWN = "unknown"  # of an engine that was uploaded; never asked for


class Int8Method(str, Enum):
    CALIBRATOR = "calibrator"  # TensorRT's own, with its cache
    QDQ = "qdq"  # QuantizeLinear / DequantizeLinear nodes in the graph, before it reaches the backend


class Placement(str, Enum):
    """Where a runtime wants Q/DQ nodes, and with which numbers."""

    ONNXRUNTIME = "onnxruntime"  # unsigned activations, signed weights per channel, around whole operators
    TENSORRT = "tensorrt"  # symmetric int8, on the inputs of Conv, Gemm, MatMul and one branch of a residual Add


class Ranging(str, Enum):
    """How the range of an activation follows from the samples."""

    MINMAX = "minmax"
    ENTROPY = "entropy"
    PERCENTILE = "percentile"


class Builder(str, Enum):
    API = "api"  # the runtime's own, in the build child
    TRTEXEC = "trtexec"  # NVIDIA's command


@dataclass(frozen=True)
class Tolerance:
    """How far an engine may be from its source model, per output; the defaults are those for fp32.

    Source: measured on three networks against torch; a wrong scale shows in SQNR long before it shows in cosine.
    """

    sqnr_db: float = 80.0  # at least: 10·log10(Σ ref² / Σ (ref − engine)²)
    cosine: float = 0.99999  # at least
    max_rel: float = 1e-4  # at most: max |ref − engine| / max |ref|
    top1: float = 1.0  # at least: share of samples with the same arg max, near ties not counted


HALF_TOLERANCE = Tolerance(sqnr_db=40, cosine=0.9999, max_rel=1e-2, top1=0.99)
TF32_TOLERANCE = Tolerance(sqnr_db=50, cosine=0.9999, max_rel=1e-2, top1=0.99)  # measured: ResNet-18 61.8 dB
# max_rel is the worst of all elements: 0.13 to 0.22 for detectors of thousands of boxes at 30 to 33 dB, where a few lie
# between two bins and jump. Wrong scales show in SQNR and cosine; what is left for max_rel is an element wholly wrong.
INT8_TOLERANCE = Tolerance(sqnr_db=15, cosine=0.99, max_rel=0.5, top1=0.98)
INT8_DOUBTFUL_DB = 20.0  # an INT8 engine below this is published with a warning


@dataclass(frozen=True)
class BuildOptions:
    """What the client asked for; what it left open is decided during the build and recorded in the engine."""

    backend: str = "auto"  # a backend's name, or "auto": the best one that this device has
    precision: Precision = Precision.FP32
    input_shapes: Mapping[str, Shape] = field(default_factory=dict)  # by input; "" = the only input
    min_shapes: Mapping[str, Shape] = field(default_factory=dict)
    opt_shapes: Mapping[str, Shape] = field(default_factory=dict)
    max_shapes: Mapping[str, Shape] = field(default_factory=dict)
    preprocess: Mapping[str, Any] | None = None  # fields of Preprocess; the rest follows from the model's input
    labels: tuple[str, ...] = ()  # class names, by index
    tolerance: Mapping[str, float] | None = None  # fields of Tolerance; the rest follows from the precision
    simplify: bool = True
    opset: int | None = None  # of an export from PyTorch; None = the backend's default
    dynamic_batch: bool = False  # make a fixed batch dynamic, or fail
    fold_preprocess: bool = False  # colour order, scale, mean and std into the graph: the engine takes uint8 images
    int8_method: Int8Method | None = None  # None = the backend's first
    int8_ranging: Ranging | None = None  # None = the method's default
    tf32: bool = False  # TensorRT: allow 19-bit products in FP32 layers
    workspace_mib: int | None = None  # TensorRT: scratch memory that a layer may take; None = the runtime's default
    tactic_sources: tuple[str, ...] | None = None  # TensorRT: names of TacticSource; None = the runtime's default
    optimization_level: int | None = None  # TensorRT ≥ 8.6: 0 (fast build) to 5 (fast engine)
    dla_core: int | None = None  # TensorRT: run on this DLA core, the GPU taking what it cannot
    builder: Builder = Builder.API
    timeout_s: float | None = None  # None = the setting build_timeout_s


@dataclass(frozen=True)
class Facts:
    """What an engine is valid under; a difference on load means that the engine is stale."""

    backend: str
    backend_version: str
    device: str  # model name of the GPU, or of the CPU
    architecture: str  # x86_64, aarch64
    compute_capability: str | None = None  # "8.7"; None without a GPU
    l4t: str | None = None  # Jetson's system release, "36.4.0"; None elsewhere


@dataclass(frozen=True)
class OutputAccuracy:
    """One output of the engine against the same output of the unmodified source model, over all samples."""

    name: str
    max_abs: float  # max |ref − engine|
    max_rel: float  # max |ref − engine| / max |ref|; 0 when both are 0
    cosine: float  # of the flattened outputs; 1 when both are 0
    sqnr_db: float  # capped at 200: equal to the last bit


@dataclass(frozen=True)
class LabelledAccuracy:
    """Share of right answers (top-1) of both on samples whose class is known."""

    samples: int
    source: float  # 0..1
    engine: float  # 0..1


@dataclass(frozen=True)
class Accuracy:
    outputs: tuple[OutputAccuracy, ...]
    samples: int  # different rows compared; 0: none, as the engine was uploaded
    inputs: str  # "random": by dtype and range; "held-back": samples that calibration never saw
    reference: str  # the runtime that ran the source model, with its version
    top1_agreement: float | None = None  # 0..1, of the rows that are no near ties; None unless a classifier has some
    top5_agreement: float | None = None  # 0..1: the source's first class is among the engine's first five
    near_ties: int = 0  # rows whose two best classes the source keeps no farther apart than twice the RMS error
    labelled: LabelledAccuracy | None = None  # None: no sample has a label


@dataclass(frozen=True)
class Latency:
    """Of `run` on one context, host tensors to host tensors."""

    p50_ms: float
    p99_ms: float
    throughput_per_s: float  # rows a second, one context, run after run
    rows: int  # rows in each run
    runs: int


@dataclass(frozen=True)
class Candidate:
    """One engine that a build with precision auto made, or failed to make."""

    precision: Precision
    int8_method: Int8Method | None = None  # None unless INT8
    accepted: bool = False  # within its tolerance
    reason: str = ""  # why it was refused
    accuracy: Accuracy | None = None  # None, like the rest, when it was never run
    latency: Latency | None = None
    size_bytes: int | None = None
    built_in_s: float | None = None  # quantisation and compilation


@dataclass(frozen=True)
class SourceModel:
    """An uploaded network. `digest` is its id: the same bytes twice are one model."""

    digest: Digest
    name: str  # the file's name as uploaded, cleaned
    format: ModelFormat
    size_bytes: int
    uploaded_at: datetime


@dataclass(frozen=True)
class CalibrationSet:
    """An uploaded archive of samples. `digest` is its id."""

    digest: Digest
    name: str
    size_bytes: int
    entries: int  # files in it
    uploaded_at: datetime


@dataclass(frozen=True)
class BuiltEngine:
    """What a build hands over: everything about the engine but its name."""

    size_bytes: int
    facts: Facts
    signature: Signature
    preprocess: Preprocess | None  # None: takes tensors only
    labels: tuple[str, ...]
    accuracy: Accuracy
    latency: Latency
    built_in_s: float
    warnings: tuple[str, ...] = ()
    precision: Precision = Precision.FP32  # what was built: never AUTO
    int8_method: Int8Method | None = None  # None unless INT8
    candidates: tuple[Candidate, ...] = ()  # all that precision auto looked at; empty without it
    device_bytes: int | None = None  # that it held with one context; None: built before that was measured, as the next
    peak_bytes: int | None = None  # of the build process


@dataclass(frozen=True)
class Publication:
    """An engine about to get its version: `built` under `name`."""

    name: str
    key: str  # engine_key(): equal keys are one engine
    blob: Digest  # the engine file
    model: Digest | None  # None: uploaded as an engine
    calibration: Digest | None
    options: BuildOptions
    built: BuiltEngine


@dataclass(frozen=True)
class EngineRecord:
    """A published engine, `name:version`."""

    name: str
    version: int  # 1, 2, …; never given twice
    key: str
    blob: Digest
    model: Digest | None  # None: uploaded as an engine, so that nobody can build it again
    calibration: Digest | None
    options: BuildOptions
    built: BuiltEngine
    created_at: datetime
    damaged_at: datetime | None = None  # when its file was found not to be what was stored; None: it is whole

    @cached_property  # several times for every request
    def ref(self) -> str:
        return f"{self.name}:{self.version}"


def engine_key(model: Digest, options: BuildOptions, calibration: Digest | None, facts: Facts) -> str:
    """Name of the engine that these inputs make: two builds of one key are one engine.

    The time limit is left out: it decides whether an engine is made, not which.
    """
    described = asdict(options)
    del described["timeout_s"]
    text = json.dumps([RECIPE_REVISION, model, described, calibration, asdict(facts)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def checked_name(name: str) -> str:
    """The name, if an engine can have it.

    Raises:
        InvalidName: it is not 1 to 64 of a-z, 0-9, ".", "_", "-", starting with a letter or digit.
    """
    if not NAME.fullmatch(name):
        raise InvalidName(
            f"{name[:80]!r} cannot name an engine.",
            hint="Use 1 to 64 characters of a-z, 0-9, '.', '_', '-', starting with a letter or digit.",
        )
    return name


def parsed_ref(ref: str) -> tuple[str, int | None]:
    """Split `name` or `name:version`; None stands for the newest version.

    Raises:
        InvalidName: the name or the version cannot be one.
    """
    name, colon, version = ref.partition(":")
    if colon and not re.fullmatch(r"[1-9][0-9]{0,8}", version):
        raise InvalidName(
            f"{version[:80]!r} is not an engine version.", hint="Versions are 1, 2, …; leave it out for the newest."
        )
    return checked_name(name), int(version) if colon else None
