"""The TensorRT backend where something is missing, and the shapes and files that it takes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from app.backends.tensorrt.backend import TensorRT
from app.backends.tensorrt.driver import DriverFailed
from app.backends.tensorrt.profiles import profile_ranges
from app.backends.tensorrt.runtime import header_of, split
from app.domain.errors import BackendMissing, CompileFailed, ShapesContradict, ShapesNeeded
from app.domain.tensors import Shape, ShapeRange


class NoGpu:
    def gpu(self) -> object:
        raise DriverFailed("cuInit: CUDA_ERROR_NO_DEVICE (100)")


def network(*inputs: tuple[str, Shape], is_shape: bool = False) -> SimpleNamespace:
    tensors = [SimpleNamespace(name=name, shape=shape, is_shape_tensor=is_shape) for name, shape in inputs]
    return SimpleNamespace(num_inputs=len(tensors), get_input=tensors.__getitem__)


def test_without_a_gpu_the_backend_is_missing_and_tensorrt_is_not_touched():
    with pytest.raises(BackendMissing, match="CUDA_ERROR_NO_DEVICE") as caught:
        TensorRT(trt=object(), libcuda=NoGpu())

    assert "nvidia-smi" in caught.value.hint


def test_an_open_batch_that_nobody_limited_may_have_up_to_so_many_rows():
    ranges = profile_ranges(network(("x", (-1, 3)), ("mask", (5,))), {}, 32, dla=False)

    assert ranges == {"x": ShapeRange((1, 3), (1, 3), (32, 3))}


def test_a_range_that_was_asked_for_is_taken():
    asked = {"x": ShapeRange((2, 3), (4, 3), (8, 3))}

    assert profile_ranges(network(("x", (-1, 3))), asked, 32, dla=False) == asked


def test_an_open_axis_that_nobody_limited_is_asked_for_with_the_option_that_gives_it():
    with pytest.raises(ShapesNeeded) as caught:
        profile_ranges(network(("image", (-1, 3, -1, -1))), {}, 32, dla=False)

    assert "-F max_shapes=image:Nx3xNxN" in caught.value.hint


def test_a_shape_as_an_input_is_refused():
    with pytest.raises(CompileFailed, match="axis"):
        profile_ranges(network(("axes", (2,)), is_shape=True), {}, 32, dla=False)


def test_a_dla_core_takes_one_shape():
    assert profile_ranges(network(("x", (-1, 3))), {}, 32, dla=True)["x"].max == (1, 3)
    with pytest.raises(ShapesContradict):
        profile_ranges(network(("x", (-1, 3))), {"x": ShapeRange((1, 3), (1, 3), (2, 3))}, 32, dla=True)


@pytest.mark.parametrize(
    ("file", "plan"),
    [
        (b"\x07\0\0\0" + b'{"a":1}' + b"ptrt", b"ptrt"),
        (b"ptrt{not a header}", b"ptrt{not a header}"),
        (b"\x07\0\0\0" + b"{broken" + b"ptrt", b"\x07\0\0\0{brokenptrt"),
        (b"", b""),
    ],
    ids=["Ultralytics", "plan", "broken header", "empty"],
)
def test_only_a_header_of_metadata_is_taken_off_an_engine_file(file, plan):
    assert split(file)[1] == plan


def test_an_engine_for_a_dla_core_says_so_in_front_of_its_plan():
    assert split(header_of(1) + b"ptrt") == ({"dla": 1}, b"ptrt")
