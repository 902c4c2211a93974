"""One line of execution: copy in, run, copy out, on one thread; recorded as a CUDA graph for every shape."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from app.backends.base import Context, check_by_row
from app.backends.tensorrt import versions
from app.backends.tensorrt.cuda import Block, Cuda, Graph, Stream
from app.backends.tensorrt.layout import ALL, SHAPES_MAX, Key, Layout, Layouts
from app.backends.tensorrt.listeners import Lines
from app.backends.tensorrt.messages import explained, words
from app.domain.errors import EngineUnloadable, ExecutionFailed, TensorRejected
from app.domain.tensors import ANY, Shape, Signature, Tensors, check_inputs

log = logging.getLogger(__name__)

_AGAIN = "Check the shapes and values of the inputs; if they are as in training, build the engine again."


@dataclass(frozen=True)
class Loaded:
    """A deserialised engine, as its contexts need it."""

    trt: Any
    cuda: Cuda
    engine: Any
    signature: Signature
    lines: Lines
    scratch_bytes: int  # of one run
    records: bool  # runs as CUDA graphs, where that works


class TensorRTContext(Context):
    """An execution context of the engine, its stream and its buffers.

    CUDA's own context is this thread's current one from opening to closing.
    """

    def __init__(self, loaded: Loaded, profile: int, closed: Callable[[TensorRTContext], None]) -> None:
        """Open it on the calling thread.

        Args:
            profile: the optimisation profile that is this context's.
            closed: told once, at the end.
        """
        self._cuda = loaded.cuda
        self._signature = loaded.signature
        self._lines = loaded.lines
        self._scratch_bytes = loaded.scratch_bytes
        self._records = loaded.records  # until a run could not be recorded
        self._closed = closed
        self._unrecordable: tuple[type[Exception], ...] = (*loaded.cuda.errors, ExecutionFailed)
        self._graphs: OrderedDict[tuple[Key, int], Graph] = OrderedDict()  # by shapes and address of the scratch
        self._shapes_set: Key | None = None
        self._block: Block | None = None
        self._context: Any = None
        self._stream: Stream | None = None
        self._layouts: Layouts | None = None
        self._cuda.push()
        try:
            self._stream = self._cuda.stream()
            self._layouts = Layouts(loaded.trt, loaded.cuda, loaded.engine, loaded.signature)
            self._context = self._opened(loaded, profile)
            self._refuse_unknown_lengths()
        except BaseException:
            self._release()
            raise

    def run(self, inputs: Tensors) -> Tensors:
        is_empty = any(tensor.size == 0 for tensor in inputs.values())
        if is_empty and (nothing := self._answer_to_no_rows(inputs)) is not None:
            return nothing
        return self._guarded([inputs], [ALL])[0]

    def run_joined(self, parts: Sequence[Tensors], rows: Sequence[int]) -> list[Tensors]:
        if len(parts) == 1 or any(tensor.size == 0 for part in parts for tensor in part.values()):
            return super().run_joined(parts, rows)
        ends = accumulate(rows)
        return self._guarded(parts, [slice(end - length, end) for end, length in zip(ends, rows, strict=True)])

    def close(self) -> None:
        try:
            self._release()
        finally:
            self._closed(self)

    @property
    def buffer_bytes(self) -> int:
        """Of inputs and outputs, on the host and on the device."""
        return self._layouts.size_bytes if self._layouts else 0

    # --- a run -----------------------------------------------------------------------------------------------------

    def _guarded(self, parts: Sequence[Tensors], places: Sequence[slice]) -> list[Tensors]:
        """Run on checked parts, each at its place along axis 0."""
        try:
            for part in parts:
                check_inputs(part, self._signature)
            return self._answered(self._key(parts, places[-1].stop), parts, places)
        except TensorRejected as error:
            raise ExecutionFailed(error.detail, hint=error.hint) from error
        except self._cuda.errors as error:
            raise self._failed(str(error)) from error

    def _key(self, parts: Sequence[Tensors], rows: int | None) -> Key:
        """The shapes of a run of so many rows; None: of the only part's."""
        joint = tuple(parts[0][spec.name].shape for spec in self._signature.inputs)
        joint = joint if rows is None else tuple((rows, *shape[1:]) for shape in joint)
        for spec, shape in zip(self._signature.inputs, joint, strict=True):
            allowed = self._signature.ranges.get(spec.name)
            if not spec.fits(shape) or (allowed is not None and not allowed.holds(shape)):
                raise ExecutionFailed(f"{rows} rows of {spec.name!r} are outside the engine's profile.", hint=_AGAIN)
        return joint

    def _answered(self, key: Key, parts: Sequence[Tensors], places: Sequence[slice]) -> list[Tensors]:
        assert self._layouts is not None
        layout = self._layouts.get(key) or self._laid_out(key, self._layouts)
        for part, place in zip(parts, places, strict=True):
            for port in layout.inputs:
                port.put(part[port.spec.name], place)
        with self._cuda.scratch.leased(self._scratch_bytes, self._block) as block:
            self._execute(key, layout, block)
            if len(parts) > 1:
                for port in layout.outputs:
                    check_by_row(port.spec.name, port.view.shape, places[-1].stop)
            return [{port.spec.name: port.copied(place) for port in layout.outputs} for place in places]

    def _execute(self, key: Key, layout: Layout, block: Block) -> None:
        assert self._stream is not None
        graph = self._graphs.get((key, block.address))
        if graph is not None:
            graph.launch()
            self._stream.wait()
            return
        self._prepare(key, layout, block)
        self._enqueue(layout)
        self._stream.wait()
        if self._records:
            self._record(key, layout, block.address)

    def _prepare(self, key: Key, layout: Layout, block: Block) -> None:
        """Tell the execution context shapes, addresses and scratch memory, where they are not what it has."""
        if self._shapes_set != key:
            self._set_shapes(key)
            for port in layout.ports:
                self._must(self._context.set_tensor_address(port.spec.name, port.address), port.spec.name)
            self._shapes_set = key
        if block is not self._block:
            versions.hand_scratch(self._context, block.address, block.size_bytes)
            self._block = block

    def _enqueue(self, layout: Layout) -> None:
        assert self._stream is not None
        for port in layout.inputs:
            if port.moved_bytes:
                self._stream.send(port.buffer, port.moved_bytes)
        self._must(self._context.execute_async_v3(self._stream.handle), "the run")
        for port in layout.outputs:
            if port.moved_bytes:
                self._stream.fetch(port.buffer, port.moved_bytes)

    def _record(self, key: Key, layout: Layout, address: int) -> None:
        """Record the run that has just succeeded, and keep the record if it gives the same answer.

        Several graphs of one execution context, one for each shape, are what NVIDIA's inference server keeps as well.
        """
        assert self._stream is not None
        if any(port.on_host for port in layout.ports):
            self._records = False
            return
        try:
            graph = self._stream.recorded(lambda: self._enqueue(layout))
        except self._unrecordable as error:
            self._records = False
            self._lines.taken()
            log.info("runs are not recorded as CUDA graphs: %s", error)
            return
        if not self._repeats(graph, layout):
            self._records = False
            graph.close()
            log.warning("a recorded run answered otherwise than the run itself: CUDA graphs are off for this context")
            return
        self._graphs[key, address] = graph
        if len(self._graphs) > SHAPES_MAX:
            self._graphs.popitem(last=False)[1].close()

    def _repeats(self, graph: Graph, layout: Layout) -> bool:
        """Whether the record answers as the run did. The run's answer is in place afterwards."""
        assert self._stream is not None
        answers = [port.view.copy() for port in layout.outputs]
        graph.launch()
        self._stream.wait()
        same = True
        for port, answer in zip(layout.outputs, answers, strict=True):
            same = same and port.view.tobytes() == answer.tobytes()
            np.copyto(port.view, answer)
        return same

    # --- shapes ----------------------------------------------------------------------------------------------------

    def _laid_out(self, key: Key, layouts: Layouts) -> Layout:
        self._set_shapes(key)
        return layouts.made(key, self._output_shapes(), self._forget)

    def _set_shapes(self, key: Key) -> None:
        """Set the shapes; until the addresses are set as well, the context cannot run."""
        self._shapes_set = None
        for spec, shape in zip(self._signature.inputs, key, strict=True):
            self._must(self._context.set_input_shape(spec.name, shape), f"the shape of {spec.name}")

    def _output_shapes(self) -> dict[str, Shape]:
        return {spec.name: tuple(self._context.get_tensor_shape(spec.name)) for spec in self._signature.outputs}

    def _answer_to_no_rows(self, inputs: Tensors) -> Tensors | None:
        """Outputs without rows for inputs without rows, which no profile admits; None for every other request."""
        specs = self._signature.inputs
        if set(inputs) != {spec.name for spec in specs}:
            return None
        for spec in specs:
            tensor = inputs[spec.name]
            if (
                not spec.fits(tensor.shape)
                or spec.shape[:1] != (ANY,)
                or len(tensor)
                or tensor.dtype != spec.dtype.numpy
            ):
                return None
        self._set_shapes(tuple((1, *inputs[spec.name].shape[1:]) for spec in specs))
        shapes = self._output_shapes()
        return {spec.name: np.empty((0, *shapes[spec.name][1:]), spec.dtype.numpy) for spec in self._signature.outputs}

    # --- opening and closing ---------------------------------------------------------------------------------------

    def _opened(self, loaded: Loaded, profile: int) -> Any:
        assert self._stream is not None
        context = versions.context_without_scratch(loaded.trt, loaded.engine)
        if context is None:
            raise self._unloadable("TensorRT made no context.")
        if self._signature.ranges and context.active_optimization_profile != profile:
            if not context.set_optimization_profile_async(profile, self._stream.handle):
                raise self._unloadable(f"TensorRT refused the optimisation profile {profile}.")
            self._stream.wait()
        return context

    def _refuse_unknown_lengths(self) -> None:
        """Refuse outputs whose shape depends on values, as their memory cannot be laid out before the run."""
        best = {name: allowed.opt for name, allowed in self._signature.ranges.items()}
        self._set_shapes(tuple(best.get(spec.name, spec.shape) for spec in self._signature.inputs))
        unknown = [name for name, shape in self._output_shapes().items() if min(shape, default=0) < 0]
        if unknown:
            raise EngineUnloadable(
                f"The shape of the output {unknown[0]!r} depends on the values of the inputs, which the backend"
                " tensorrt cannot serve.",
                hint="Leave the last layer (such as NonZero or NonMaxSuppression) to the client, or build for the"
                " backend onnxruntime.",
            )

    def _release(self) -> None:
        """Give everything back, on the thread that took it."""
        try:
            self._forget()
            if self._layouts is not None:
                self._layouts.close()
            self._context = self._stream = self._layouts = self._block = None
        finally:
            self._cuda.pop()

    def _forget(self) -> None:
        """Drop what was recorded."""
        self._shapes_set = None
        while self._graphs:
            with suppress(*self._cuda.errors):  # after a fault of the device nothing can be freed any more
                self._graphs.popitem()[1].close()

    # --- failures --------------------------------------------------------------------------------------------------

    def _must(self, is_done: bool, what: str) -> None:
        if not is_done:
            raise self._failed(f"it refused {what}")

    def _failed(self, said: str) -> ExecutionFailed:
        lines = [*self._lines.taken(), said]
        known = explained(lines)
        text = f"{known.cause} " if known else ""
        return ExecutionFailed(f"{text}TensorRT failed: {words(lines)}", hint=known.fix if known else _AGAIN)

    def _unloadable(self, said: str) -> EngineUnloadable:
        lines = self._lines.taken()
        known = explained(lines)
        hint = known.fix if known else "Unload other engines, or build the engine again."
        return EngineUnloadable(f"{known.cause if known else said} {words(lines)}".strip(), hint=hint)
