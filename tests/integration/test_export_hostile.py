"""PyTorch files that do more than compute: each is first shown to work unconfined, then stopped."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.torch_required import needs_torch

needs_torch()

import torch  # noqa: E402

from app.build.export import to_onnx  # noqa: E402
from app.build.inspection import inspect_model  # noqa: E402
from app.domain.builds import BuildOptions, ModelFormat  # noqa: E402
from app.domain.errors import BuildKilled, ConfinementMissing, ModelUnsafe, ServiceError  # noqa: E402
from app.domain.jobs import Failure  # noqa: E402
from tests import torch_networks as networks  # noqa: E402
from tests.torch_networks import opened_here, program, scripted, seeded  # noqa: E402

ROOT = Path(__file__).parents[2]
SECRET = b"secret" * 100


class Silent:
    def step(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


def exported(path: Path, folder: Path, **how: Any) -> None:
    format = ModelFormat.PT2 if path.suffix == ".pt2" else ModelFormat.TORCHSCRIPT
    to_onnx(path, format, folder / "model.onnx", BuildOptions(input_shapes={"x": (2, 4)}), Silent(), **how)


def opened_unconfined(path: Path) -> None:
    """Open it here, as anyone would who trusts it: what it does is confined to the test's folder by its author."""
    with contextlib.suppress(Exception):
        opened_here(path)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file that only its owner may read."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "victim").write_bytes(SECRET)
    (folder / "victim").chmod(0o600)
    return folder / "victim"


def test_torchscript_that_reads_a_file_while_it_loads_is_stopped(victim, tmp_path):
    path = scripted(seeded(networks.Reading, str(victim), len(SECRET)), tmp_path)
    assert bytes(opened_here(path).loot.tolist()) == SECRET

    with pytest.raises(ModelUnsafe, match="Permission denied"):
        exported(path, tmp_path)

    assert not (tmp_path / "model.onnx").exists()


def test_torchscript_that_overwrites_a_file_while_it_loads_is_stopped(victim, tmp_path):
    path = scripted(seeded(networks.Overwriting, str(victim), len(SECRET)), tmp_path)
    opened_unconfined(path)
    assert victim.read_bytes() != SECRET
    victim.write_bytes(SECRET)

    with pytest.raises(ModelUnsafe, match="Permission denied"):
        exported(path, tmp_path)

    assert victim.read_bytes() == SECRET


def test_torchscript_that_writes_a_new_file_while_it_loads_writes_none(victim, tmp_path):
    new = victim.parent / "new"
    path = scripted(seeded(networks.Saving, str(new)), tmp_path)
    opened_unconfined(path)
    assert new.exists()
    new.unlink()

    exported(path, tmp_path)  # what it computes is harmless, and torch does not tell that it could not write

    assert [entry.name for entry in victim.parent.iterdir()] == ["victim"]


def test_a_network_that_asks_for_too_much_memory_is_ended_with_the_reason(tmp_path):
    path = scripted(seeded(networks.Hungry), tmp_path)

    with pytest.raises(BuildKilled, match="memory"):
        exported(path, tmp_path)

    assert list(tmp_path.iterdir()) == [path]


class _Touch:
    """Runs a shell command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch {self.marker}",)


def with_poisoned_example(parts: dict[str, bytes], marker: Path, folder: Path) -> None:
    torch.save(((torch.zeros(2, 4), _Touch(marker)), {}), folder / "poison")
    parts["data/sample_inputs/model.pt"] = (folder / "poison").read_bytes()


def with_pickled_weights(parts: dict[str, bytes], marker: Path, folder: Path) -> None:
    torch.save(_Touch(marker), folder / "poison")
    parts["data/weights/weight_0"] = (folder / "poison").read_bytes()
    config = json.loads(parts["data/weights/model_weights_config.json"])
    next(entry for entry in config["config"].values() if entry["path_name"] == "weight_0")["use_pickle"] = True
    parts["data/weights/model_weights_config.json"] = json.dumps(config).encode()


def with_code_as_length(parts: dict[str, bytes], marker: Path, folder: Path) -> None:
    code = json.dumps(f"__import__('os').system('touch {marker}')")[1:-1]
    model = parts["models/model.json"].decode()
    symbol = model.split('"expr_str": "')[1].split('"}')[0].split('", "hint')[0]
    parts["models/model.json"] = model.replace(f'"expr_str": "{symbol}"', f'"expr_str": "{code}"').encode()


def with_code_as_guard(parts: dict[str, bytes], marker: Path, folder: Path) -> None:
    model = json.loads(parts["models/model.json"])
    model["guards_code"] = [f"__import__('os').system('touch {marker}') is not None"]
    parts["models/model.json"] = json.dumps(model).encode()


POISONS: dict[str, Callable[[dict[str, bytes], Path, Path], None]] = {
    "example inputs": with_poisoned_example,
    "weights": with_pickled_weights,
    "lengths": with_code_as_length,
    "guards": with_code_as_guard,
}


@pytest.mark.parametrize("place", POISONS)
def test_code_in_a_program_runs_when_it_is_opened_unconfined_and_never_in_an_export(place, tmp_path):
    good = program(seeded(networks.Dictionary), tmp_path, torch.randn(2, 4), name="good.pt2")
    marker, path = tmp_path / "marker", tmp_path / "evil.pt2"
    with zipfile.ZipFile(good) as archive:
        parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    POISONS[place](parts, marker, tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(f"evil/{name}", content)
    opened_unconfined(path)
    assert marker.exists()
    marker.unlink()

    try:
        exported(path, tmp_path)
        refused = None
    except ServiceError as error:
        refused = error.code
    told = inspect_model(path, ModelFormat.PT2, tmp_path)

    assert not marker.exists()
    assert refused == (None if place == "guards" else "model_unsafe")  # guards are dropped; nothing else needs them
    # What takes PyTorch to find, a build finds.
    assert (told.code if isinstance(told, Failure) else None) == ("model_unsafe" if place == "lengths" else None)


# A process that has lost the system call that makes Landlock rules, as on a kernel without it, and exports then.
WITHOUT_LANDLOCK = """
import ctypes, struct, sys
from pathlib import Path
steps = ((0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x00050000 | 38), (0x06, 0, 0, 0x7FFF0000))
code = b"".join(struct.pack("<HBBI", *step) for step in steps)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(4, code)), 0, 0) == 0
from app.build.export import to_onnx
from app.domain.builds import BuildOptions, ModelFormat
from app.domain.errors import ServiceError
class Progress:
    def step(self, text): print(text)
    warn = step
path = Path(sys.argv[1])
options = BuildOptions(input_shapes={"x": (2, 4)})
try:
    to_onnx(path, ModelFormat.TORCHSCRIPT, path.parent / "model.onnx", options, Progress(),
            require_confinement=sys.argv[2] == "required")
except ServiceError as error:
    print(error.code, error.detail)
"""


def without_landlock(path: Path, requirement: str) -> str:
    command = [sys.executable, "-c", WITHOUT_LANDLOCK, str(path), requirement]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=True).stdout


def test_what_a_system_cannot_confine_is_told_and_files_are_still_not_written(victim, tmp_path):
    path = scripted(seeded(networks.Overwriting, str(victim), len(SECRET)), tmp_path)

    told = without_landlock(path, "optional")

    assert "missing: no files but its own (Landlock)" in told
    assert "model_unsafe" in told
    assert victim.read_bytes() == SECRET


def test_a_requirement_to_confine_refuses_where_something_is_missing(tmp_path):
    path = scripted(seeded(networks.Dictionary), tmp_path)

    told = without_landlock(path, "required")

    assert ConfinementMissing.code in told and "Landlock" in told
    assert not (tmp_path / "model.onnx").exists()
