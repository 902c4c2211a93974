"""What an upload tells before it is built: read in a confined child, never in this process."""

from __future__ import annotations

import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from app.build.inspect import describe
from app.build.inspection import inspect_model
from app.domain.builds import ModelFormat
from app.domain.jobs import Failure
from app.domain.model_facts import ModelFacts
from app.domain.tensors import DType, TensorSpec
from tests import networks
from tests.torch_required import HAS_TORCH

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"


def told(path: Path, format: ModelFormat, folder: Path, **how: float) -> ModelFacts:
    facts = inspect_model(path, format, folder, **{"timeout_s": 300, **how})
    assert isinstance(facts, ModelFacts), facts
    return facts


def test_an_onnx_file_tells_its_inputs_outputs_weights_and_operators(tmp_path):
    facts = told(EXAMPLE / "digits.onnx", ModelFormat.ONNX, tmp_path)

    assert facts == ModelFacts(
        size_bytes=(EXAMPLE / "digits.onnx").stat().st_size,
        inputs=(TensorSpec("image", DType.FLOAT32, (-1, 1, 8, 8)),),
        outputs=(TensorSpec("logits", DType.FLOAT32, (-1, 10)),),
        opset=17,
        parameters=9_930,
        operators={"Conv": 2, "Relu": 2, "MaxPool": 1, "Flatten": 1, "Gemm": 1},
    )
    assert list(tmp_path.iterdir()) == []


def test_operators_that_a_backend_lacks_are_named(tmp_path):
    path = networks.saved(networks.custom_operators(), tmp_path)

    facts = told(path, ModelFormat.ONNX, tmp_path)

    assert "acme::Foo" in facts.refused_by["onnxruntime"]
    assert any(name.startswith("acme::") for name in facts.operators)


def test_an_archive_tells_of_the_network_in_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(EXAMPLE / "digits.onnx", "net/digits.onnx")

    facts = told(tmp_path / "a.zip", ModelFormat.ONNX_ARCHIVE, tmp_path)

    assert facts.parameters == 9_930 and facts.inputs[0].name == "image"


def test_operators_that_a_backend_lacks_are_named_in_an_archive_too(tmp_path):
    path = networks.saved(networks.custom_operators(), tmp_path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "model.onnx")

    facts = told(tmp_path / "a.zip", ModelFormat.ONNX_ARCHIVE, tmp_path)

    assert "acme::Foo" in facts.refused_by["onnxruntime"]


def test_a_program_tells_everything_without_pytorch(tmp_path):
    facts = told(EXAMPLE / "digits.pt2", ModelFormat.PT2, tmp_path)

    assert facts.inputs == (TensorSpec("input", DType.FLOAT32, (-1, 1, 8, 8)),)
    assert [spec.shape for spec in facts.outputs] == [(-1, 10)]
    assert facts.operators["aten.conv2d.default"] == 2
    assert facts.parameters == 10_124  # with the statistics of two batch norms


def test_torchscript_tells_its_weights_and_operators(tmp_path):
    facts = told(EXAMPLE / "digits.torchscript.pt", ModelFormat.TORCHSCRIPT, tmp_path)

    assert facts.parameters == 10_124
    assert facts.operators["conv2d"] == 2 and "linear" in facts.operators
    if HAS_TORCH:
        assert facts.inputs == (TensorSpec("input", DType.FLOAT32, (-1, 1, 8, 8)),)
        assert facts.needs_shapes == ()
    else:
        assert facts.needs_shapes == ("input",)


@pytest.mark.skipif(not HAS_TORCH, reason="only PyTorch writes such a file")
def test_a_network_whose_shapes_nobody_knows_says_what_the_build_has_to_be_told(tmp_path):
    from tests.torch_networks import Words, scripted, seeded

    facts = told(scripted(seeded(Words), tmp_path), ModelFormat.TORCHSCRIPT, tmp_path)

    assert facts.needs_shapes == ("tokens",)
    assert "-F input_shapes=tokens:1x16" in facts.hint


@pytest.mark.skipif(not HAS_TORCH, reason="only PyTorch writes such a file")
def test_a_trace_tells_the_shapes_that_it_was_made_with(tmp_path):
    import torch

    from tests.torch_networks import TwoInputs, seeded, traced

    path = traced(seeded(TwoInputs), tmp_path, torch.zeros(3, 4), torch.zeros(3, 6))

    facts = told(path, ModelFormat.TORCHSCRIPT, tmp_path)

    assert facts.inputs == (TensorSpec("a", DType.FLOAT32, (3, 4)), TensorSpec("b", DType.FLOAT32, (3, 6)))
    assert facts.needs_shapes == ()


@pytest.mark.skipif(not HAS_TORCH, reason="only PyTorch writes such a file")
def test_a_file_that_never_ends_loading_is_given_up_in_time(tmp_path):
    from tests.torch_networks import Endless, scripted, seeded

    path = scripted(seeded(Endless), tmp_path)
    started = time.monotonic()

    failure = inspect_model(path, ModelFormat.TORCHSCRIPT, tmp_path, timeout_s=4)

    assert isinstance(failure, Failure) and failure.code == "build_timed_out"
    assert time.monotonic() - started < 60
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "name, format",
    [
        ("digits.onnx", ModelFormat.ONNX),
        ("digits.pt2", ModelFormat.PT2),
        ("digits.torchscript.pt", ModelFormat.TORCHSCRIPT),
        ("digits.onnx", ModelFormat.ONNX_ARCHIVE),
    ],
)
def test_a_damaged_file_is_told_as_a_failure(name, format, tmp_path):
    path = tmp_path / "damaged"
    path.write_bytes((EXAMPLE / name).read_bytes()[:20_000])

    failure = inspect_model(path, format, tmp_path)

    assert isinstance(failure, Failure) and failure.code == "model_invalid" and failure.hint
    assert list(tmp_path.iterdir()) == [path]


def test_the_asking_process_imports_neither_onnx_nor_torch(tmp_path):
    code = (
        "import sys; from pathlib import Path; from app.build.inspection import inspect_model;"
        "from app.domain.builds import ModelFormat;"
        "facts = inspect_model(Path(sys.argv[1]), ModelFormat.ONNX, Path(sys.argv[2]));"
        "print(facts.parameters, {'onnx', 'torch', 'onnxruntime'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(EXAMPLE / "digits.onnx"), str(tmp_path)]

    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=EXAMPLE.parents[1], timeout=60)

    assert done.stdout == "9930 set()\n"


@pytest.mark.parametrize(
    ("file", "format"), [("digits.pt2", ModelFormat.PT2), ("digits.torchscript.pt", ModelFormat.TORCHSCRIPT)]
)
def test_that_pytorch_is_missing_is_told_before_a_build(monkeypatch, file, format):
    monkeypatch.setattr("app.build.inspect.find_spec", lambda name: None)

    facts = describe(EXAMPLE / file, format)

    assert facts.parameters and "PyTorch, which a build needs, is not installed" in facts.hint


@pytest.mark.skipif(HAS_TORCH, reason="PyTorch is installed")
def test_without_pytorch_a_build_of_its_files_says_how_to_get_it(tmp_path):
    from app.build.export import to_onnx
    from app.domain.builds import BuildOptions
    from app.domain.errors import TorchMissing

    class Silent:
        def step(self, text: str) -> None: ...

        def warn(self, text: str) -> None: ...

    with pytest.raises(TorchMissing) as failure:
        to_onnx(EXAMPLE / "digits.pt2", ModelFormat.PT2, tmp_path / "model.onnx", BuildOptions(), Silent())

    assert "pip install -r requirements-torch.lock" in failure.value.hint
