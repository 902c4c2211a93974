"""What a Jetson's files tell: laid out as the board has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.backends.board import (
    board_model,
    gpu_load,
    gpu_power_w,
    jetpack_of,
    l4t_release,
    power_mode,
    temperatures_c,
)

RELEASE = "# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic, EABI: aarch64, DATE: Fri Sep 13 2024\n"
PACKAGES = """Package: nvidia-l4t-apt-source
Version: 35.4.1-20230801124926

Package: nvidia-l4t-core
Status: install ok installed
Architecture: arm64
Version: 36.3.0-20240506102626
"""


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_board_is_named_by_its_device_tree(tmp_path):
    root = lay_out(tmp_path, {"proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0"})

    assert board_model(root) == "NVIDIA Jetson Orin Nano Developer Kit"


@pytest.mark.parametrize(
    ("files", "release"),
    [
        ({"etc/nv_tegra_release": RELEASE}, "36.4.0"),
        ({"var/lib/dpkg/status": PACKAGES}, "36.3.0"),
        ({"etc/nv_tegra_release": RELEASE, "var/lib/dpkg/status": PACKAGES}, "36.4.0"),
        ({"var/lib/dpkg/status": "Package: bash\nVersion: 5.1\n"}, None),
        ({}, None),
    ],
    ids=["file", "package", "both", "another system", "nothing"],
)
def test_the_system_release_is_found_in_the_release_file_or_the_packages(tmp_path, files, release):
    assert l4t_release(lay_out(tmp_path, files)) == release


def test_the_jetpack_follows_from_the_system_release():
    assert jetpack_of("36.4.0") == "6.1 or 6.2"
    assert jetpack_of("36.3.0") == "6.0"
    assert jetpack_of("35.4.1") == "5.1"
    assert jetpack_of(None) is None
    assert jetpack_of("99.1") is None


def test_the_power_mode_is_told_by_name(tmp_path):
    files = {
        "var/lib/nvpmodel/status": "pmode:0002",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=15W >\n",
    }
    assert power_mode(lay_out(tmp_path, files)) == "15W (2)"
    (tmp_path / "etc/nvpmodel.conf").unlink()
    assert power_mode(tmp_path) == "2"


def test_temperatures_are_told_by_zone_and_broken_sensors_left_out(tmp_path):
    files = {
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "48125\n",
        "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n",
        "sys/class/thermal/thermal_zone1/temp": "",
    }
    assert temperatures_c(lay_out(tmp_path, files)) == {"cpu-thermal": 48.125}


@pytest.mark.parametrize(
    "place",
    ["sys/devices/gpu.0/load", "sys/devices/platform/gpu.0/load", "sys/class/devfreq/17000000.ga10b/device/load"],
)
def test_the_load_of_the_gpu_is_a_share_of_one(tmp_path, place):
    assert gpu_load(lay_out(tmp_path, {place: "375\n"})) == 0.375


@pytest.mark.parametrize("text", ["", "busy"])
def test_a_load_that_cannot_be_read_is_not_told(tmp_path, text):
    assert gpu_load(lay_out(tmp_path, {"sys/devices/gpu.0/load": text})) is None
    assert gpu_power_w(tmp_path) is None


def test_the_power_of_the_gpu_is_that_of_the_rails_that_name_it(tmp_path):
    monitor = "sys/class/hwmon/hwmon3"
    files = {
        f"{monitor}/in1_label": "VDD_IN\n",
        f"{monitor}/in1_input": "5000\n",
        f"{monitor}/curr1_input": "2000\n",
        f"{monitor}/in2_label": "VDD_CPU_GPU_CV\n",
        f"{monitor}/in2_input": "5000\n",
        f"{monitor}/curr2_input": "800\n",
    }
    assert gpu_power_w(lay_out(tmp_path, files)) == 4.0
