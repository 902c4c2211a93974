"""A deserialised engine in device memory."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from app import heap
from app.backends.base import LoadedEngine
from app.backends.tensorrt import versions
from app.backends.tensorrt.context import Loaded, TensorRTContext
from app.backends.tensorrt.cuda import Cuda
from app.backends.tensorrt.listeners import Lines, logger_into
from app.backends.tensorrt.messages import explained, words
from app.domain.errors import BackendMissing, EngineStale, EngineUnloadable
from app.domain.tensors import ANY, DType, ShapeRange, Signature, TensorSpec

NOTE = "jetforge "  # starts the network's name, which the plan keeps, where there is something to note
_REBUILD = "Build the engine again on this device."


def engine_from(trt: Any, cuda: Cuda, plan: bytes, *, records: bool) -> Engine:
    """Put an engine into device memory.

    Args:
        plan: as TensorRT serialised it, with or without the header that Ultralytics puts before it.
        records: whether runs are recorded as CUDA graphs.

    Raises:
        EngineStale: made by another TensorRT or for another GPU.
        EngineUnloadable: not an engine, damaged, out of memory, or with tensors that cannot be fed.
    """
    lines = Lines()
    logger = logger_into(trt, lines)
    header, plan = split(plan)
    if not plan:
        raise EngineUnloadable("The engine file is empty.", hint=_REBUILD)
    with _unloadable(cuda, lines), cuda.pushed():
        trt.init_libnvinfer_plugins(logger, "")
        runtime = made(trt.Runtime, logger)
        _choose_dla(runtime, header.get("dla"))
        found = runtime.deserialize_cuda_engine(plan)
        if found is None:
            raise _refused(lines.taken(every_thread=True))
        loaded = Loaded(trt, cuda, found, _signature(trt, found), lines, versions.scratch_bytes(found), records)
        return Engine(loaded, (runtime, logger), len(plan))


def split(engine: bytes) -> tuple[dict[str, Any], bytes]:
    """What stands before the plan, and the plan: Ultralytics puts some JSON there, and before that its length in four
    little-endian bytes. So does this service, where a plan alone does not tell all."""
    if len(engine) < 6 or engine[4:5] != b"{":
        return {}, engine
    (length,) = struct.unpack_from("<i", engine)
    try:
        header: dict[str, Any] = json.loads(engine[4 : 4 + length])
    except ValueError:
        return {}, engine
    return header, engine[4 + length :]


def header_of(dla_core: int) -> bytes:
    """What stands before the plan of an engine for a DLA core; Ultralytics' name and form of it."""
    text = json.dumps({"dla": dla_core}).encode()
    return struct.pack("<i", len(text)) + text


def made(factory: Any, *arguments: Any) -> Any:
    """What TensorRT's factory makes.

    Raises:
        BackendMissing: it makes nothing, which is its way of saying that CUDA does not work.
    """
    try:
        return factory(*arguments)
    except TypeError as error:
        raise BackendMissing(
            f"TensorRT could not be started: {error}.", hint="Check the driver and that the GPU is visible."
        ) from error


class Engine(LoadedEngine):
    """An engine, its contexts and the profiles that they take."""

    is_on_cpu = False
    parallel_runs = 2  # while one computes, the other's tensors move

    def __init__(self, loaded: Loaded, keep: tuple[Any, ...], plan_bytes: int) -> None:
        """Wrap what was deserialised.

        Args:
            keep: what the engine uses as long as it lives.
        """
        self._loaded: Loaded | None = loaded
        self._keep = keep
        self._cuda = loaded.cuda
        self._signature = loaded.signature
        self._own_bytes = plan_bytes + loaded.scratch_bytes
        self._lock = threading.Lock()
        self._contexts: dict[TensorRTContext, int] = {}  # with their profiles
        profiles = max(1, loaded.engine.num_optimization_profiles)
        needs_own = bool(loaded.signature.ranges) and (profiles > 1 or not versions.shares_profiles(loaded.trt))
        self._free_profiles: list[int] | None = list(range(profiles)) if needs_own else None  # None: all share one

    @property
    def signature(self) -> Signature:
        return self._signature

    @property
    def device_bytes(self) -> int:
        """The plan (its weights and kernels), the scratch memory of one run, and the buffers of every context.

        Idle contexts hold no scratch memory, so it is counted once.
        """
        with self._lock:
            return self._own_bytes + sum(context.buffer_bytes for context in self._contexts)

    def open_context(self, at_once: int | None = None) -> TensorRTContext:
        """A context for the calling thread, which alone may use it; CUDA's own context is pushed until it is closed.

        Raises:
            EngineUnloadable: out of memory, or the engine has no profile left for one more context.
        """
        assert self._loaded is not None, "a closed engine was used"
        profile = self._taken_profile()
        try:
            with _unloadable(self._cuda, self._loaded.lines):
                context = TensorRTContext(self._loaded, profile, self._context_closed)
        except BaseException:
            self._give_profile(profile)
            raise
        with self._lock:
            self._contexts[context] = profile
        return context

    def close(self) -> None:
        with self._cuda.pushed():
            self._loaded = None
            self._keep = ()
            self._cuda.scratch.trim()
        heap.trim()

    def _context_closed(self, context: TensorRTContext) -> None:
        with self._lock:
            profile = self._contexts.pop(context)
        self._give_profile(profile)

    def _taken_profile(self) -> int:
        with self._lock:
            if self._free_profiles is None:
                return 0
            if not self._free_profiles:
                raise EngineUnloadable(
                    "The engine has no optimisation profile left for one more context.",
                    hint="Lower the setting contexts (JETFORGE_CONTEXTS).",
                )
            return self._free_profiles.pop(0)

    def _give_profile(self, profile: int) -> None:
        with self._lock:
            if self._free_profiles is not None:
                self._free_profiles.append(profile)


def _choose_dla(runtime: Any, core: Any) -> None:
    """Let the engine run on the DLA core that it was built for; without a word TensorRT takes the first.

    Raises:
        EngineUnloadable: this device has no such core.
    """
    if core is None:
        return
    cores = int(runtime.num_DLA_cores)
    if not str(core).isdecimal() or int(core) >= cores:  # Ultralytics writes it as text
        raise EngineUnloadable(
            f"The engine was built for the DLA core {str(core)[:20]}; this device has {cores or 'none'}.",
            hint="Build the engine again with another dla_core, or without.",
        )
    runtime.DLA_core = int(core)


@contextmanager
def _unloadable(cuda: Cuda, lines: Lines) -> Iterator[None]:
    try:
        yield
    except cuda.errors as error:
        known = explained([*lines.taken(), str(error)])
        raise EngineUnloadable(
            f"{known.cause if known else 'CUDA failed'} ({words([str(error)])})", hint=known.fix if known else _REBUILD
        ) from error


def _refused(lines: list[str]) -> EngineStale | EngineUnloadable:
    known = explained(lines)
    said = words(lines) or "it gave no reason"
    text = f"{known.cause if known else 'TensorRT refused the engine.'} TensorRT's words: {said}"
    kind = EngineStale if known is not None and known.is_stale else EngineUnloadable
    return kind(text, hint=known.fix if known else _REBUILD)


def _signature(trt: Any, engine: Any) -> Signature:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
    widened = _noted_int64(engine.name)
    specs = {name: _spec(trt, engine, name, widened) for name in names}
    for name in inputs:
        _refuse_host_input(trt, engine, name)
    return Signature(
        tuple(specs[name] for name in inputs),
        tuple(specs[name] for name in outputs),
        {name: _range(engine, name) for name in inputs if ANY in specs[name].shape},
    )


def _spec(trt: Any, engine: Any, name: str, widened: frozenset[str]) -> TensorSpec:
    found = engine.get_tensor_dtype(name)
    dtype = versions.dtype_of(trt, found)
    if dtype is None or engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
        raise EngineUnloadable(
            f"The engine's tensor {name!r} is of type {found} in format {engine.get_tensor_format(name)}, which this"
            " service cannot feed.",
            hint="Build the engine with plain float32, float16, int32, int64, uint8 or bool inputs and outputs.",
        )
    if name in widened:
        dtype = DType.INT64
    return TensorSpec(name, dtype, tuple(ANY if length < 0 else length for length in engine.get_tensor_shape(name)))


def _refuse_host_input(trt: Any, engine: Any, name: str) -> None:
    if engine.get_tensor_location(name) == trt.TensorLocation.HOST:
        raise EngineUnloadable(
            f"The engine's input {name!r} is a shape, which this service cannot feed.",
            hint="Make it a constant of the network.",
        )


def _range(engine: Any, name: str) -> ShapeRange:
    low, best, high = (tuple(shape) for shape in engine.get_tensor_profile_shape(name, 0))
    return ShapeRange(low, best, high)


def note_int64(names: list[str]) -> str:
    """The name of a network whose tensors of these names are INT64 in the model but INT32 in the engine."""
    return NOTE + json.dumps({"int64": names})


def _noted_int64(name: str) -> frozenset[str]:
    if not name.startswith(NOTE):
        return frozenset()
    return frozenset(json.loads(name[len(NOTE) :]).get("int64", ()))
