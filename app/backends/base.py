"""The seam between jetforge and a runtime. Every backend passes `tests/contract`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from app.domain.builds import BuildOptions, Facts, Int8Method, Placement, Precision
from app.domain.tensors import ShapeRange, Signature, Tensors


class Progress(Protocol):
    """Where a build step tells what it does; each call is one line in the job's history."""

    def step(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


class Samples(Protocol):
    """Calibration samples, preprocessed as inference does it, streamed in constant memory."""

    @property
    def count(self) -> int:
        """Rows in all batches together."""
        ...

    @property
    def key(self) -> str:
        """Digest of archive, recipe and selection: names what can be kept for the next build."""
        ...

    def batches(self, rows: int) -> Iterator[Tensors]:
        """Every sample once, in the same order each time, `rows` at a time (the last batch may be smaller)."""
        ...


class Context(Protocol):
    """One line of execution; used by one thread at a time, always the same one."""

    def run(self, inputs: Tensors) -> Tensors:
        """Run the engine once.

        Args:
            inputs: checked by the caller against the signature; C-contiguous.

        Returns:
            Every output by name, in the model's order. They belong to the caller: a later run leaves them alone.

        Raises:
            ExecutionFailed: the runtime refused or failed.
        """
        ...

    def close(self) -> None: ...


class LoadedEngine(Protocol):
    """An engine in device memory; its contexts share the weights."""

    @property
    def signature(self) -> Signature:
        """As the runtime reports it: names, dtypes, shapes. `rows_max` is the record's business, not its."""
        ...

    @property
    def device_bytes(self) -> int:
        """What the engine holds of the memory that the pool budgets: measured where the runtime tells, else
        estimated from the file."""
        ...

    def open_context(self) -> Context: ...

    def close(self) -> None:
        """Give the memory back. Contexts are closed before."""
        ...


class Backend(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def precisions(self) -> Collection[Precision]:
        """What `compile` can build on this device."""
        ...

    def facts(self) -> Facts:
        """What an engine compiled here and now is valid under. Cheap: no runtime is started for it."""
        ...

    def check(self, onnx: Path) -> None:
        """Refuse a model that this backend cannot read, before anything long starts.

        Raises:
            OperatorUnsupported: names every operator that is missing.
            OpsetUnsupported: names the version found and those that are read.
        """
        ...

    @property
    def opset_max(self) -> int:
        """Newest opset of ONNX's own domain that is read. For the build child: it may import the onnx package."""
        ...

    @property
    def int8_methods(self) -> Sequence[Int8Method]:
        """How `compile` can be handed INT8, best first; empty without INT8."""
        ...

    @property
    def placement(self) -> Placement:
        """Where this runtime wants Q/DQ nodes."""
        ...

    @property
    def fp16_in_graph(self) -> bool:
        """Whether FP16 is asked for by casting the graph before `compile`, rather than by a flag."""
        ...

    def compile(
        self,
        onnx: Path,
        options: BuildOptions,
        ranges: Mapping[str, ShapeRange],
        engine: Path,
        progress: Progress,
        *,
        calibration: Samples | None,
        cache: Path,
        rows_max: int,
    ) -> None:
        """Make the engine file from a checked model.

        Args:
            options: its precision is never `auto`.
            ranges: min, opt and max shape of each dynamic input that the request limits.
            calibration: for INT8 by the runtime's own calibrator; None when the graph carries what it needs.
            rows_max: largest batch that must run, for inputs whose batch `ranges` leaves open.
            cache: a folder that outlives the build: timing and calibration caches, by names of the backend's own.

        Raises:
            CompileFailed: the runtime's own words are in it.
        """
        ...

    def load(self, engine: Path) -> LoadedEngine:
        """Load an engine file that `compile` made under the same facts.

        Raises:
            EngineUnloadable: damaged, foreign, or out of memory.
        """
        ...
