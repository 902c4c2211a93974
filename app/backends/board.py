"""What a board tells about itself: Jetson's release, power mode and temperatures. Each is None or empty elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path("/")


def board_model(root: Path = _ROOT) -> str | None:
    """The board's own name, as in `NVIDIA Jetson Orin Nano Developer Kit`."""
    return _text(root / "proc/device-tree/model")


def l4t_release(root: Path = _ROOT) -> str | None:
    """Jetson's system release, as in `36.4.0`: of the release file, else of the installed package."""
    text = _text(root / "etc/nv_tegra_release") or ""
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    if match is not None:
        return f"{match.group(1)}.{match.group(2)}"
    return _packaged_release(_text(root / "var/lib/dpkg/status") or "")


def jetpack_of(l4t: str | None) -> str | None:
    """The JetPack that brings this release, by its major line; None when it is not known."""
    lines = {"34": "5.0", "35": "5.1", "36.2": "6.0", "36.3": "6.0", "36.4": "6.1 or 6.2", "38": "7.0 or 7.1"}
    found = (name for line, name in lines.items() if l4t and (l4t == line or l4t.startswith(f"{line}.")))
    return next(found, None)


def power_mode(root: Path = _ROOT) -> str | None:
    """The power mode that nvpmodel has set, by name where its table is there: `MAXN (0)`."""
    status = re.search(r"pmode:(\d+)", _text(root / "var/lib/nvpmodel/status") or "")
    if status is None:
        return None
    number = int(status.group(1))
    table = _text(root / "etc/nvpmodel.conf") or ""
    name = re.search(rf"<\s*POWER_MODEL\s+ID={number}\s+NAME=(\S+?)\s*>", table)
    return f"{name.group(1)} ({number})" if name else str(number)


def temperatures_c(root: Path = _ROOT) -> dict[str, float]:
    """Temperatures by the kernel's name of the zone, in °C; zones that cannot be read are left out."""
    found: dict[str, float] = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name, value = _text(zone / "type"), _text(zone / "temp")
        if name and value and re.fullmatch(r"-?\d+", value):
            found[name] = int(value) / 1000
    return found


def gpu_load(root: Path = _ROOT) -> float | None:
    """How busy the board's GPU is, 0..1; None where it is not part of the board.

    Source: the file `load` of the GPU's device, in tenths of a percent; its place differs between releases.
    """
    places = ("sys/devices/gpu.0/load", "sys/devices/platform/gpu.0/load", "sys/class/devfreq/*.gpu/device/load")
    chips = ("gp10b", "gv11b", "ga10b")  # TX2, Xavier, Orin: the device's name is the chip's on some releases
    patterns = (*places, *(f"sys/class/devfreq/*.{chip}/device/load" for chip in chips))
    texts = (_text(path) for pattern in patterns for path in sorted(root.glob(pattern)))
    return next((min(int(text) / 1000, 1.0) for text in texts if text and re.fullmatch(r"\d+", text)), None)


def gpu_power_w(root: Path = _ROOT) -> float | None:
    """What the board's power monitors measure on the rails that name the GPU, in watts; None without such a rail.

    A rail may feed more than the GPU, as VDD_GPU_SOC and VDD_CPU_GPU_CV do: then it is all of that.
    """
    total_w: float | None = None
    for label in sorted(root.glob("sys/class/hwmon/hwmon*/in*_label")):
        if "GPU" not in (_text(label) or ""):
            continue
        number = label.name.removeprefix("in").removesuffix("_label")
        volts, amperes = (_text(label.with_name(f"{kind}{number}_input")) for kind in ("in", "curr"))
        if volts and amperes and re.fullmatch(r"\d+ \d+", f"{volts} {amperes}"):
            total_w = (total_w or 0) + int(volts) * int(amperes) / 1e6  # millivolts by milliamperes
    return total_w


def _packaged_release(status: str) -> str | None:
    match = re.search(r"^Package: nvidia-l4t-core\n(?:.+\n)*?Version: (\d+\.\d+(?:\.\d+)?)", status, re.MULTILINE)
    return match.group(1) if match else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip("\0 \n") or None
    except OSError:  # missing, or a sensor that is switched off
        return None
