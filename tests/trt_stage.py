"""The real module tensorrt with its factories replaced: autospecs of its own classes play a network of y = 2·x.

A name that the installed version lacks is an AttributeError, a call with other arguments than its signature has fails
`assert_calls_fit`.
"""

from __future__ import annotations

import re
from typing import Any
from unittest.mock import create_autospec

import numpy as np

from tests.fake_cuda import FakeGpu

PLAN = b"ptrt: a plan of y = 2x"
ROWS_MAX = 32
SCRATCH_BYTES = 4096


class Stage:
    """Passed to the backend in place of the module: every name is the real one, but for the factories."""

    def __init__(
        self, real: Any, gpu: FakeGpu, *, integers: bool = False, quantised: bool = False, exclusive: bool = False
    ) -> None:
        """Set the stage.

        Args:
            integers: x and y are INT64, or INT32 where there is no INT64.
            quantised: the graph carries Q/DQ nodes.
            exclusive: there is no preview feature, so that contexts cannot share a profile.
        """
        self._real = real
        self._gpu = gpu
        self._quantised = quantised
        if exclusive:
            self.PreviewFeature = object()
        self._mocks: list[tuple[Any, type]] = []
        types = real.DataType
        self.dtype = getattr(types, "INT64", types.INT32) if integers else types.FLOAT
        self.numpy = {"INT64": np.int64, "INT32": np.int32, "FLOAT": np.float32}[self.dtype.name]
        self.network_name = "doubled"
        self.flags: set[str] = {"TF32"}
        self.config: Any = None
        self.runtime: Any = None  # the latest
        self.profiles = 0
        self.profile: Any = None  # the last one
        self.calibrated: list[np.ndarray] = []
        self.build_fails = ""  # what the builder logs before it fails
        self.load_fails = ""
        self.logger: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    # --- factories -------------------------------------------------------------------------------------------------

    def init_libnvinfer_plugins(self, logger: Any, space: str) -> bool:
        return True

    def get_plugin_registry(self) -> None:
        return None

    def Builder(self, logger: Any) -> Any:
        self.logger = logger
        builder = self._mock(self._real.Builder)
        builder.num_DLA_cores = 2
        builder.create_network.side_effect = lambda flags: self._network()
        builder.create_builder_config.side_effect = self._config
        builder.create_optimization_profile.side_effect = lambda: self._mock(self._real.IOptimizationProfile)
        builder.build_serialized_network.side_effect = self._build
        return builder

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        parser = self._mock(self._real.OnnxParser)
        parser.parse_from_file.return_value = True
        parser.supports_operator.side_effect = lambda name: name not in ("Foo", "Bar")
        return parser

    def Runtime(self, logger: Any) -> Any:
        self.logger = logger
        runtime = self.runtime = self._mock(self._real.Runtime)
        runtime.num_DLA_cores = 2
        runtime.deserialize_cuda_engine.side_effect = self._deserialised
        return runtime

    # --- building --------------------------------------------------------------------------------------------------

    def _network(self) -> Any:
        network = self._mock(self._real.INetworkDefinition)
        network.num_inputs, network.num_layers = 1, 1
        tensor = self._tensor("x")
        network.get_input.side_effect = lambda index: tensor
        layer = self._mock(self._real.ILayer)
        kinds = self._real.LayerType
        layer.type, layer.num_outputs = (kinds.DEQUANTIZE if self._quantised else kinds.ELEMENTWISE), 1
        layer.get_output.side_effect = lambda index: self._tensor("y")
        network.get_layer.side_effect = lambda index: layer
        return network

    def _tensor(self, name: str) -> Any:
        tensor = self._mock(self._real.ITensor)
        tensor.name, tensor.shape, tensor.dtype, tensor.is_shape_tensor = name, (-1, 4), self.dtype, False
        return tensor

    def _config(self) -> Any:
        self.config = config = self._mock(self._real.IBuilderConfig)
        self.flags, self.profiles = {"TF32"}, 0
        config.set_flag.side_effect = lambda flag: self.flags.add(flag.name)
        config.clear_flag.side_effect = lambda flag: self.flags.discard(flag.name)
        config.add_optimization_profile.side_effect = self._add_profile
        config.get_preview_feature.return_value = False
        cache = self._mock(self._real.ITimingCache)
        cache.serialize.return_value = b"measured"
        config.create_timing_cache.return_value = config.get_timing_cache.return_value = cache
        config.set_timing_cache.side_effect = lambda cache, ignore: True
        return config

    def _add_profile(self, profile: Any) -> int:
        self.profiles += 1
        self.profile = profile
        return self.profiles - 1

    def _build(self, network: Any, config: Any) -> bytes | None:
        if self.build_fails:
            self.logger.log(self._real.ILogger.Severity.ERROR, self.build_fails)
            return None
        if isinstance(network.name, str):
            self.network_name = network.name
        if hasattr(config, "progress_monitor"):
            monitor = config.progress_monitor
            monitor.phase_start("Tactic selection", None, 2)
            goes_on = monitor.step_complete("Tactic selection", 0)
            monitor.phase_finish("Tactic selection")
            assert goes_on is True
        if "INT8" in self.flags and config.set_calibration_profile.called:
            self._calibrate(config.int8_calibrator)
        return PLAN

    def _calibrate(self, calibrator: Any) -> None:
        if calibrator.read_calibration_cache() is not None:
            return
        rows = calibrator.get_batch_size()
        while (addresses := calibrator.get_batch(["x"])) is not None:
            self.calibrated.append(self._gpu.array(addresses[0], np.float32, (rows, 4)).copy())
        calibrator.write_calibration_cache(b"TRT-EntropyCalibration2\nx: 3c010a14")

    # --- running ---------------------------------------------------------------------------------------------------

    def _deserialised(self, plan: bytes) -> Any:
        if bytes(plan) != PLAN:
            text = self.load_fails or "Serialization assertion plan->header.magicTag == rt::kPLAN_MAGIC_TAG failed."
            self.logger.log(self._real.ILogger.Severity.ERROR, text)
            return None
        modes, real = self._real.TensorIOMode, self._real
        engine = self._mock(real.ICudaEngine)
        engine.name, engine.num_io_tensors = self.network_name, 2
        engine.num_optimization_profiles = max(1, self.profiles)
        engine.get_tensor_name.side_effect = lambda index: ("x", "y")[index]
        engine.get_tensor_mode.side_effect = lambda name: modes.INPUT if name == "x" else modes.OUTPUT
        engine.get_tensor_dtype.side_effect = lambda name: self.dtype
        engine.get_tensor_format.side_effect = lambda name: real.TensorFormat.LINEAR
        engine.get_tensor_location.side_effect = lambda name: real.TensorLocation.DEVICE
        engine.get_tensor_shape.side_effect = lambda name: (-1, 4)
        engine.get_tensor_profile_shape.side_effect = lambda name, profile: [(1, 4), (1, 4), (ROWS_MAX, 4)]
        for name in ("device_memory_size", "device_memory_size_v2"):
            if hasattr(engine, name):
                setattr(engine, name, SCRATCH_BYTES)
        engine.create_execution_context.side_effect = lambda *strategy: self._context()
        if hasattr(engine, "create_execution_context_without_device_memory"):
            engine.create_execution_context_without_device_memory.side_effect = self._context
        return engine

    def _context(self) -> Any:
        context = self._mock(self._real.IExecutionContext)
        addresses: dict[str, int] = {}
        shapes: dict[str, tuple[int, ...]] = {}

        def set_shape(name: str, shape: tuple[int, ...]) -> bool:
            shapes[name] = tuple(shape)
            return 1 <= shape[0] <= ROWS_MAX

        def set_address(name: str, address: int) -> bool:
            addresses[name] = address
            return True

        def execute(stream: int) -> bool:
            assert self._scratch_of(context) in self._gpu.memory, "the scratch memory was freed"
            shape, x, y = shapes["x"], addresses["x"], addresses["y"]

            def double() -> None:
                self._gpu.array(y, self.numpy, shape)[:] = self._gpu.array(x, self.numpy, shape) * 2

            self._gpu.do(stream, double)
            return True

        context.active_optimization_profile = -1
        context.set_input_shape.side_effect = set_shape
        context.get_tensor_shape.side_effect = lambda name: shapes["x"]
        context.set_tensor_address.side_effect = set_address
        context.set_optimization_profile_async.side_effect = lambda profile, stream: True
        context.execute_async_v3.side_effect = execute
        return context

    def _scratch_of(self, context: Any) -> int:
        if hasattr(context, "set_device_memory"):
            return int(context.set_device_memory.call_args.args[0])
        return int(context.device_memory)

    # --- checks ----------------------------------------------------------------------------------------------------

    def _mock(self, kind: type) -> Any:
        mock = create_autospec(kind, instance=True, spec_set=True)
        self._mocks.append((mock, kind))
        return mock

    def assert_calls_fit(self) -> int:
        """Every call that was made has arguments that the binding's signature takes; how many were looked at."""
        looked_at = 0
        for mock, kind in self._mocks:
            for name, args, kwargs in mock.method_calls:
                allowed = _signatures(kind, name)
                assert any(_fits(allow, args, kwargs) for allow in allowed), (
                    f"{kind.__name__}.{name}{args}{kwargs}: {allowed}"
                )
                looked_at += 1
        return looked_at


def _signatures(kind: type, name: str) -> list[list[str]]:
    """Parameters of each overload, without self, as pybind11 writes them into the docstring."""
    text = " ".join((getattr(kind, name).__doc__ or "").split())
    found = [_split(match.group(1)) for match in re.finditer(rf"{name}\((self: .*?)\) -> ", text)]
    assert found, f"{kind.__name__}.{name} has no signature"
    return [parameters[1:] for parameters in found]


def _split(text: str) -> list[str]:
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{<") - (letter in ")]}>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _fits(parameters: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    required = [part for part in parameters if " = " not in part]
    names = {part.split(":")[0] for part in parameters}
    return len(required) <= len(args) + len(kwargs) <= len(parameters) and set(kwargs) <= names
