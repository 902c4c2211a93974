"""The seam between jetforge and a runtime. Every backend passes `tests/contract`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

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

    def run_joined(self, parts: Sequence[Tensors], rows: Sequence[int]) -> list[Tensors]:
        """Run the engine once on the rows of all parts, one after another along axis 0.

        A runtime that keeps buffers of its own gathers the parts there, so that nothing is copied twice.

        Args:
            parts: each as for `run`; equal in all but axis 0.
            rows: of each part.

        Returns:
            The outputs of each part; no two share memory.

        Raises:
            NotByRow: an output's axis 0 is not as long as the rows together.
            ExecutionFailed: the runtime refused or failed.
        """
        return split(self.run(joined(parts)), rows)

    def close(self) -> None: ...


class NotByRow(Exception):
    """A joint run's output does not have one row for each row of input."""


def joined(parts: Sequence[Tensors]) -> Tensors:
    """The parts one after another along axis 0; a single part as it is, not copied."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def split(outputs: Tensors, rows: Sequence[int]) -> list[Tensors]:
    """Undo `joined` on the outputs: each part its own copy; a single part as it is, not copied.

    Raises:
        NotByRow: an output's axis 0 is not as long as the rows together.
    """
    if len(rows) == 1:
        return [outputs]
    for name, output in outputs.items():
        check_by_row(name, output.shape, sum(rows))
    parts: list[Tensors] = []
    end = 0
    for length in rows:
        start, end = end, end + length
        # Copied, so that a small answer does not keep the whole run's in memory.
        parts.append({name: output[start:end].copy() for name, output in outputs.items()})
    return parts


def check_by_row(name: str, shape: Sequence[int], rows: int) -> None:
    """Refuse an output that cannot be told apart by rows.

    Raises:
        NotByRow: its axis 0 is not so long.
    """
    if not shape or shape[0] != rows:
        raise NotByRow(f"output {name!r} has shape {tuple(shape)} for {rows} rows")


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

    @property
    def is_on_cpu(self) -> bool:
        """Whether a run computes on the calling thread: a context may then be used on any thread, one at a time."""
        ...

    @property
    def parallel_runs(self) -> int:
        """How many contexts at work together make the most of the device."""
        ...

    def open_context(self, at_once: int | None = None) -> Context:
        """A context for the calling thread, which may be bound to a processor until the context closes.

        Args:
            at_once: how many contexts, this one counted, will be at work together: it takes its share of the
                processors; None: the backend's own choice, as in a build.
        """
        ...

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

    def free_bytes(self) -> int:
        """Memory that engines can still take: of the device and of the system, whichever is less."""
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

    def lighter(self, options: BuildOptions) -> Sequence[BuildOptions]:
        """The same build with less and less memory; empty where `compile` has nothing to lower."""
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
            BuildOutOfMemory: there was not enough of it.
        """
        ...

    def load(self, engine: Path) -> LoadedEngine:
        """Load an engine file that `compile` made under the same facts.

        Raises:
            EngineUnloadable: damaged, foreign, or out of memory.
        """
        ...
