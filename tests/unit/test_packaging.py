"""What a Jetson is given: the image's recipe, the service's unit, the scripts, and the networks of the acceptance."""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from app.api.error_page import SOURCE

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from acceptance.agreement import agreement  # noqa: E402
from acceptance.figures import known_figures, shortfalls  # noqa: E402
from acceptance.memory import gpu_used_in, tegra_used_in  # noqa: E402
from acceptance.samples import picture  # noqa: E402
from networks_for_acceptance import NETWORKS  # noqa: E402

SHELL_SCRIPTS = ["scripts/install-jetson", "scripts/device-acceptance", "packaging/build-pycuda"]
PARAMETERS_MILLION = {"resnet18": 11.7, "mobilenet": 3.5, "yolo": 3.2}


# --- Dockerfile.l4t ---------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """Each instruction of the Dockerfile with its arguments, continuation lines joined."""
    text = (ROOT / "Dockerfile.l4t").read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ").splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Name of each stage → its instructions, the first being its FROM."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, arguments in instructions():
        if name == "FROM":
            current = found.setdefault(arguments.split()[-1], [])
        if found:
            current.append((name, arguments))
    return found


def default_stage() -> list[tuple[str, str]]:
    """All that the default image is made of, its parents first."""
    by_name = stages()
    name = list(by_name)[-1]
    made: list[tuple[str, str]] = []
    while name in by_name:
        made = by_name[name] + made
        name = by_name[name][0][1].split()[0].replace("${JETPACK}", "6")
    return made


def last(name: str) -> str:
    return [arguments for found, arguments in default_stage() if found == name][-1]


def test_the_image_has_a_base_for_each_jetpack_and_a_build_argument_that_chooses() -> None:
    arguments = dict(value.split("=", 1) for name, value in instructions() if name == "ARG")

    assert arguments == {
        "JETPACK": "6",
        "JETPACK6_IMAGE": "nvcr.io/nvidia/l4t-jetpack:r36.4.0",
        "JETPACK7_IMAGE": "nvcr.io/nvidia/tensorrt:25.10-py3",
    }
    assert stages()["base"][0] == ("FROM", "jetpack${JETPACK} AS base")
    for version in "67":
        assert stages()[f"jetpack{version}"] == [("FROM", f"${{JETPACK{version}_IMAGE}} AS jetpack{version}")]


def test_the_image_runs_as_nobody_special_and_keeps_its_data_in_a_volume() -> None:
    assert last("USER") == "jetforge"
    assert last("VOLUME") == "/data"
    assert "JETFORGE_DATA_DIR=/data" in last("ENV")
    assert "--groups video,render jetforge" in last("RUN")


def test_the_image_says_whether_it_is_well() -> None:
    command = json.loads(last("HEALTHCHECK").partition("CMD ")[2])

    assert command[:2] == ["python", "-c"]
    assert "/healthz" in command[2]
    compile(command[2], "healthcheck", "exec")


def test_the_image_does_not_open_the_service_to_the_network() -> None:
    text = (ROOT / "Dockerfile.l4t").read_text()

    assert "JETFORGE_HOST" not in text
    assert "JETFORGE_ALLOW_ANONYMOUS" not in text


def test_only_the_stage_for_it_has_pytorch() -> None:
    assert not any("torch" in arguments for _, arguments in default_stage())
    assert not any("torch" in arguments for _, arguments in stages()["builder"])
    assert any("requirements-torch.lock" in arguments for _, arguments in stages()["with-torch"])


def test_pip_installs_what_the_locks_pin_and_nothing_else() -> None:
    installs = [line for name, line in instructions() if name == "RUN" for line in line.split("&&") if "pip in" in line]

    assert len(installs) == 3
    assert all("--no-deps" in line and ("-r " in line or "--editable ." in line) for line in installs)


def test_the_environment_sees_the_systems_tensorrt() -> None:
    runs = " ".join(arguments for name, arguments in stages()["builder"] if name == "RUN")

    assert "venv --system-site-packages" in runs
    assert "packaging/build-pycuda" in runs


def test_everything_that_the_image_copies_is_let_through_and_is_there() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        source
        for name, arguments in instructions()
        if name == "COPY" and "--from" not in arguments
        for source in arguments.split()[:-1]
    ]

    assert copied
    assert set(copied) <= allowed
    assert [path for path in allowed if not (ROOT / path).exists()] == []


def test_what_the_program_reads_from_its_source_goes_with_it() -> None:
    for recipe in ("Dockerfile.l4t", "scripts/install-jetson"):
        text = (ROOT / recipe).read_text()
        assert "alembic" in text and str(SOURCE.relative_to(ROOT)) in text, recipe


def test_the_jetson_lock_contradicts_no_other() -> None:
    def pins(name: str) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for line in (ROOT / name).read_text().splitlines():
            found.setdefault(line.partition("==")[0], set()).add(line)
        return found

    ours, service, torch = (pins(f"requirements{part}.lock") for part in ("-jetson", "", "-torch"))

    assert "pycuda" in ours
    assert {name: lines for name, lines in ours.items() if lines != service.get(name, lines)} == {}
    assert {name: lines for name, lines in ours.items() if lines != torch.get(name, lines)} == {}


# --- the unit ---------------------------------------------------------------------------------------------------


def unit(text: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None, strict=True)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(text)
    return parsed


def printed_unit(*arguments: str) -> configparser.ConfigParser:
    ran = subprocess.run(
        ["bash", ROOT / "scripts" / "install-jetson", "--unit", *arguments], capture_output=True, text=True, check=True
    )
    return unit(ran.stdout)


def test_the_unit_gives_up_rights_but_neither_the_gpu_nor_the_builds_own_confinement() -> None:
    service = unit((ROOT / "packaging" / "jetforge.service").read_text())["Service"]

    assert service["User"] == "jetforge"
    assert service["SupplementaryGroups"] == "video render"
    assert (service["NoNewPrivileges"], service["ProtectSystem"]) == ("yes", "strict")
    assert service["OOMPolicy"] == "continue"
    for closed in ("PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock", "MemoryDenyWriteExecute"):
        assert closed not in service
    for ours in ("RestrictNamespaces", "SystemCallFilter", "ProcSubset"):
        assert ours not in service


def test_the_unit_is_installed_with_the_folders_and_the_user_that_were_asked_for() -> None:
    service = printed_unit("--prefix", "/srv/jf", "--data-dir", "/srv/data", "--user", "me")["Service"]

    assert service["ExecStart"] == "/srv/jf/venv/bin/jetforge serve"
    assert service["Environment"] == "JETFORGE_DATA_DIR=/srv/data"
    assert (service["WorkingDirectory"], service["ReadWritePaths"]) == ("/srv/data", "/srv/data")
    assert (service["User"], service["Group"]) == ("me", "me")
    assert "StateDirectory" not in service


def test_a_service_is_not_installed_where_it_could_not_see_itself() -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        printed_unit("--data-dir", "/home/me/jetforge")

    assert refused.value.returncode == 2
    assert "/home" in refused.value.stderr


# --- the scripts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SHELL_SCRIPTS)
def test_a_script_is_sound_bash_and_can_be_run(script: str) -> None:
    checked = subprocess.run(["bash", "-n", ROOT / script], capture_output=True, text=True, check=False)

    assert (checked.returncode, checked.stderr) == (0, "")
    assert os.access(ROOT / script, os.X_OK)
    assert "set -euo pipefail" in (ROOT / script).read_text()


def check(tmp_path: Path, tensorrt: str) -> tuple[int, str]:
    """`install-jetson --check` with a module tensorrt of this content, and without CUDA."""
    (tmp_path / "tensorrt.py").write_text(tensorrt)
    ran = subprocess.run(
        ["bash", ROOT / "scripts" / "install-jetson", "--check", "--data-dir", tmp_path / "data", "--no-service"],
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path), "CUDA_HOME": str(tmp_path / "cuda")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stderr == ""
    return ran.returncode, ran.stdout


def test_the_check_names_a_fix_for_everything_that_is_missing(tmp_path: Path) -> None:
    status, said = check(tmp_path, "raise ImportError(\"No module named 'tensorrt'\")")

    assert status == 1
    assert re.search(r"^missing +cuda.h .*\n +fix: ", said, re.M)
    assert re.search(r"^missing +tensorrt .*\n +fix: .*python3-libnvinfer", said, re.M)
    assert len(re.findall(r"^missing ", said, re.M)) == len(re.findall(r"^ +fix: ", said, re.M))


def test_the_check_knows_a_tensorrt_whose_libraries_are_not_found(tmp_path: Path) -> None:
    reason = "libnvinfer.so.10: cannot open shared object file: No such file or directory"

    _, said = check(tmp_path, f"raise ImportError({reason!r})")

    assert re.search(rf"^missing +tensorrt .*{re.escape(reason)}\n +fix: .*ldconfig", said, re.M)


def test_the_check_finds_a_tensorrt_that_works(tmp_path: Path) -> None:
    _, said = check(tmp_path, "__version__ = '10.3.0'")

    assert re.search(r"^ok +tensorrt +TensorRT 10\.3\.0", said, re.M)
    assert not (tmp_path / "data").exists()


# --- the networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_valid_of_its_size_and_answers_rows_alone_as_together(name: str) -> None:
    network = NETWORKS[name]
    model = network.make()
    onnx.checker.check_model(model, full_check=True)
    parameters = sum(int(np.prod(weight.dims)) for weight in model.graph.initializer)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    side = network.side
    rows = np.stack([picture(seed, side, side).transpose(2, 0, 1) / np.float32(255) for seed in (1, 2)])

    (together,) = session.run(None, {network.input: rows})
    (alone,) = session.run(None, {network.input: rows[1:]})

    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert abs(parameters / 1e6 - PARAMETERS_MILLION[name]) < 0.1
    assert np.isfinite(together).all()
    assert agreement([together[1:]], [alone]).sqnr_db > 80
    assert agreement([together[:1]], [alone]).sqnr_db < 40  # it looks at its input


# --- what a report is judged by ---------------------------------------------------------------------------------

KNOWN = {"engine_p50_ms": 1.0, "http_tensor_p50_ms": 2.0, "sqnr_db": 50.0}


def test_figures_of_the_same_device_and_backend_are_found_in_a_page(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    blocks = [
        {"device": "Orin", "backend": "tensorrt", "figures": {"resnet18 fp16": KNOWN}},
        [{"device": "Thor", "figures": {"resnet18 fp16": {}}}],
        {"something": "else"},
    ]
    fences = "\n\n".join(f"```json\n{json.dumps(block)}\n```" for block in blocks)
    page.write_text(f"# Figures\n\n{fences}\n\n```json\nnot json\n```\n")

    assert known_figures(page, "Orin", "tensorrt") == {"resnet18 fp16": KNOWN}
    assert known_figures(page, "Orin", "onnxruntime") == {}
    assert known_figures(page, "Xavier", "tensorrt") == {}
    assert known_figures(tmp_path / "none.md", "Orin", "tensorrt") == {}


def test_figures_may_be_a_little_worse_but_not_much() -> None:
    assert shortfalls({"engine_p50_ms": 1.2, "http_tensor_p50_ms": 3.2, "sqnr_db": 48.0}, KNOWN) == []
    assert shortfalls({"engine_p50_ms": 0.1, "cold_ms": 9e9}, KNOWN) == []
    assert [text.split()[0] for text in shortfalls({"engine_p50_ms": 1.4, "sqnr_db": 40.0}, KNOWN)] == [
        "engine_p50_ms",
        "sqnr_db",
    ]


def test_answers_of_another_shape_agree_in_nothing() -> None:
    one, two = np.ones((1, 3), np.float32), np.ones((2, 3), np.float32)

    assert agreement([one], [one]).sqnr_db == 200
    assert agreement([one], [two]).sqnr_db < 0


def test_memory_is_read_from_what_the_tools_print_and_left_out_where_they_know_nothing() -> None:
    assert gpu_used_in("1423\n") == 1423
    assert gpu_used_in("[N/A]\n") is None
    assert gpu_used_in("") is None
    assert tegra_used_in("11-22-2026 14:00:00 RAM 3171/7620MB (lfb 4x4MB) SWAP 0/3810MB CPU [2%@729]") == 3171
    assert tegra_used_in("") is None
