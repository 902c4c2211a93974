"""PyTorch files become ONNX that answers as they do: real files, real torch in a real confined child."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.torch_required import needs_torch

needs_torch()

import torch  # noqa: E402

from app.build.compare import Comparison, refuse_outside  # noqa: E402
from app.build.export import Exported, to_onnx, torch_reference  # noqa: E402
from app.domain.builds import BuildOptions, ModelFormat, Tolerance  # noqa: E402
from app.domain.errors import (  # noqa: E402
    BuildTimedOut,
    ExecutionFailed,
    ExportFailed,
    ShapesContradict,
    ShapesNeeded,
    SourceFailed,
)
from app.domain.tensors import DType, Tensors, TensorSpec  # noqa: E402
from tests import torch_networks as networks  # noqa: E402
from tests.torch_networks import program, scripted, seeded, traced  # noqa: E402

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"


class Told:
    """Keeps what an export tells."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def step(self, text: str) -> None:
        self.lines.append(text)

    warn = step


def exported(path: Path, folder: Path, told: Told | None = None, **how: Any) -> Exported:
    shapes = {name: how.pop(name) for name in list(how) if name.endswith("_shapes")}
    format = ModelFormat.PT2 if path.suffix == ".pt2" else ModelFormat.TORCHSCRIPT
    return to_onnx(path, format, folder / "model.onnx", BuildOptions(**shapes), told or Told(), **how)


def inputs_of(found: Exported, rows: int, length: int = 7) -> Tensors:
    """Random inputs: this many rows where axis 0 is open, this length where another is."""
    generator = np.random.default_rng(rows)
    tensors: Tensors = {}
    for spec in found.inputs:
        shape = [(rows if axis == 0 else length) if n < 0 else n for axis, n in enumerate(spec.shape)]
        values = generator.standard_normal(shape) if spec.dtype.is_float else generator.integers(0, 10, shape)
        tensors[spec.name] = np.asarray(values, spec.dtype.numpy)
    return tensors


def assert_equal_to(network: Any, found: Exported, rows: tuple[int, ...] = (1, 2, 5)) -> None:
    """The file answers as the network in this process does, within the tolerance of fp32."""
    onnx.checker.check_model(str(found.path), full_check=True)
    session = ort.InferenceSession(str(found.path), providers=["CPUExecutionProvider"])
    for count in rows:
        inputs = inputs_of(found, count)
        with torch.no_grad():
            answer = network(*[torch.from_numpy(tensor) for tensor in inputs.values()])
        leaves = answer.values() if isinstance(answer, dict) else answer if isinstance(answer, tuple) else [answer]
        expected = dict(zip([spec.name for spec in found.outputs], [leaf.numpy() for leaf in leaves], strict=True))
        comparison = Comparison(found.outputs, classifier=False)
        comparison.add(expected, dict(zip(expected, session.run(list(expected), inputs), strict=True)), count)
        refuse_outside(comparison.accuracy("torch"), Tolerance())


def test_a_traced_resnet18_needs_no_shapes_and_takes_any_batch(tmp_path):
    network = seeded(networks.ResNet18)
    path = traced(network, tmp_path, torch.randn(1, 3, 64, 64))

    found = exported(path, tmp_path)

    assert found.inputs == (TensorSpec("x", DType.FLOAT32, (-1, 3, 64, 64)),)
    assert [spec.shape for spec in found.outputs] == [(-1, 1000)]
    assert found.opset == 17
    assert_equal_to(network, found)


def test_a_scripted_resnet18_is_exported_at_the_shape_asked_for(tmp_path):
    network = seeded(networks.ResNet18)
    path = scripted(network, tmp_path)

    found = exported(path, tmp_path, input_shapes={"": (1, 3, 96, 64)})

    assert found.inputs == (TensorSpec("x", DType.FLOAT32, (-1, 3, 96, 64)),)
    assert_equal_to(network, found)


def test_a_network_that_takes_many_sizes_is_answered_with_the_line_that_would_do(tmp_path):
    path = scripted(seeded(networks.ResNet18), tmp_path)

    with pytest.raises(ShapesNeeded) as failure:
        exported(path, tmp_path)

    assert "'x' (float32 1x3x?x?)" in failure.value.detail
    assert "-F input_shapes=x:1x3x224x224" in failure.value.hint


def test_the_only_size_that_fits_is_found(tmp_path):
    network = seeded(networks.FixedImages)

    found = exported(scripted(network, tmp_path), tmp_path)

    assert found.inputs == (TensorSpec("image", DType.FLOAT32, (-1, 1, 28, 28)),)
    assert_equal_to(network, found)


@pytest.mark.parametrize("kind", [networks.TwoInputs, networks.Dictionary, networks.Branching, networks.Named])
def test_scripted_networks_of_many_kinds_are_exported(kind, tmp_path):
    network = seeded(kind)

    found = exported(scripted(network, tmp_path), tmp_path)

    assert all(spec.shape[0] == -1 for spec in (*found.inputs, *found.outputs))
    assert_equal_to(network, found)


def test_outputs_are_named_as_the_network_names_them(tmp_path):
    found = exported(scripted(seeded(networks.Dictionary), tmp_path), tmp_path)

    assert found.outputs == (
        TensorSpec("scores", DType.FLOAT32, (-1, 3)),
        TensorSpec("best", DType.INT64, (-1,)),
    )


def test_token_numbers_are_integers_and_their_range_of_lengths_stays_open(tmp_path):
    network = seeded(networks.Words)
    path = scripted(network, tmp_path)

    found = exported(path, tmp_path, min_shapes={"tokens": (1, 2)}, max_shapes={"tokens": (8, 20)})

    assert found.inputs == (TensorSpec("tokens", DType.INT64, (-1, -1)),)
    assert_equal_to(network, found)


def test_token_networks_ask_for_the_length(tmp_path):
    with pytest.raises(ShapesNeeded) as failure:
        exported(scripted(seeded(networks.Words), tmp_path), tmp_path)

    assert "-F input_shapes=tokens:1x16" in failure.value.hint


def test_a_batch_that_the_network_fixes_stays_fixed_and_is_told(tmp_path):
    network, told = seeded(networks.FixedBatch), Told()

    found = exported(scripted(network, tmp_path), tmp_path, told, input_shapes={"x": (2, 8)})

    assert found.inputs[0].shape == (2, 8)
    assert any("batch is fixed" in line for line in told.lines)
    assert_equal_to(network, found, rows=(2,))


def test_a_program_is_exported_with_the_axes_that_it_leaves_open(tmp_path):
    network = seeded(networks.TwoInputs)
    path = program(network, tmp_path, torch.randn(2, 4), torch.randn(2, 6))

    found = exported(path, tmp_path)

    assert [spec.shape for spec in found.inputs] == [(-1, 4), (-1, 6)]
    assert_equal_to(network, found)


def test_a_program_of_fixed_shapes_keeps_them(tmp_path):
    network = seeded(networks.FixedImages)

    found = exported(program(network, tmp_path, torch.randn(1, 1, 28, 28), rows=False), tmp_path)

    assert found.inputs[0].shape == (1, 1, 28, 28)
    assert_equal_to(network, found, rows=(1,))


@pytest.mark.parametrize("name", ["digits.torchscript.pt", "digits.pt2"])
def test_the_examples_files_answer_as_its_onnx_does(name, tmp_path):
    images = np.load(EXAMPLE / "heldout.npz")["images"][:50, None].astype(np.float32) / 255
    (expected,) = ort.InferenceSession(str(EXAMPLE / "digits.onnx")).run(None, {"image": images})

    found = exported(EXAMPLE / name, tmp_path)

    (answer,) = ort.InferenceSession(str(found.path)).run(None, {found.inputs[0].name: images})
    np.testing.assert_allclose(answer, expected, atol=1e-4)


def test_the_opset_asked_for_is_the_one_that_comes_out(tmp_path):
    path = scripted(seeded(networks.FixedImages), tmp_path)

    found = exported(path, tmp_path, opset=13, opset_max=13)

    model = onnx.load_model(str(found.path))
    assert found.opset == 13 == next(entry.version for entry in model.opset_import if entry.domain == "")


def test_a_program_for_a_backend_of_an_older_opset_is_converted_down(tmp_path):
    network = seeded(networks.FixedImages)
    path = program(network, tmp_path, torch.randn(2, 1, 28, 28))

    found = exported(path, tmp_path, opset=17, opset_max=17)

    assert found.opset == 17
    assert_equal_to(network, found)


def test_a_network_that_draws_random_numbers_is_refused(tmp_path):
    path = scripted(seeded(networks.Drawing), tmp_path)

    with pytest.raises(ExportFailed, match="differently each time"):
        exported(path, tmp_path, input_shapes={"x": (1, 4)})


def test_shapes_that_the_network_does_not_take_are_told_in_its_words(tmp_path):
    path = scripted(seeded(networks.FixedImages), tmp_path)

    with pytest.raises(SourceFailed, match=r"1x1x30x30: .*shapes cannot be multiplied"):
        exported(path, tmp_path, input_shapes={"image": (1, 1, 30, 30)})


def test_a_shape_for_an_input_that_is_not_there_names_those_that_are(tmp_path):
    path = scripted(seeded(networks.TwoInputs), tmp_path)

    with pytest.raises(ShapesContradict, match="inputs are: a, b"):
        exported(path, tmp_path, input_shapes={"c": (1, 4)})


def test_a_damaged_file_leaves_no_onnx_and_no_scratch_behind(tmp_path):
    path = scripted(seeded(networks.TwoInputs), tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])

    with pytest.raises(ExportFailed):
        exported(path, tmp_path)

    assert list(tmp_path.iterdir()) == [path]


def test_an_endless_network_is_ended_at_the_time_limit(tmp_path):
    path = scripted(seeded(networks.Endless), tmp_path)
    started = time.monotonic()

    with pytest.raises(BuildTimedOut):
        exported(path, tmp_path, timeout_s=5, input_shapes={"x": (1, 4)})

    assert time.monotonic() - started < 60
    assert list(tmp_path.iterdir()) == [path]


def test_the_uploaded_network_answers_beside_its_export_and_survives_bad_inputs(tmp_path):
    network = seeded(networks.Dictionary)
    path = scripted(network, tmp_path)
    found = exported(path, tmp_path)
    reference = torch_reference(path, ModelFormat.TORCHSCRIPT, tmp_path, found)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)

    try:
        with pytest.raises(ExecutionFailed):
            reference.run({"x": x[:, :2]})
        answer = reference.run({"x": x})
    finally:
        reference.close()

    with torch.no_grad():
        expected = network(torch.from_numpy(x))
    assert list(answer) == ["scores", "best"] and reference.runtime.startswith("torch 2")
    np.testing.assert_allclose(answer["scores"], expected["scores"].numpy(), atol=1e-6)
    np.testing.assert_array_equal(answer["best"], expected["best"].numpy())
