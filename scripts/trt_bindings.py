"""TensorRT's own Python bindings without TensorRT: real classes, enums and signatures on a machine without a GPU.

Installs NVIDIA's wheels of the bindings, each into a folder of its own, beside stubs of the libraries that they want.
Used by the conformance test; by hand: scripts/trt-bindings, then PYTHONPATH=FOLDER python -c 'import tensorrt'.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WHEELS = {  # version → project and release; the wheels of one project are all for one CUDA
    "8.6.1": ("tensorrt-bindings", "8.6.1"),
    "10.3.0": ("tensorrt-cu12-bindings", "10.3.0"),
    "10.16.1": ("tensorrt-cu13-bindings", "10.16.1.11"),
    "11.4.0": ("tensorrt-cu13-bindings", "11.4.0.106"),
}
_STUB = Path(__file__).with_name("trt_stub.c")
_LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin", "nvparsers")
_LOADER = """\
# Opened before the bindings ask for them by name.
import ctypes, pathlib
for path in sorted(pathlib.Path(__file__).parent.glob("*.so.*")):
    ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
"""
_PACKAGE = "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"


class BindingsUnavailable(Exception):
    """They cannot be made here; the text says why."""


def default_folder() -> Path:
    named = os.environ.get("JETFORGE_TRT_BINDINGS")
    return Path(named) if named else Path("~/.cache/jetforge/trt-bindings").expanduser()


def bindings(version: str, folder: Path | None = None) -> Path:
    """The folder that makes `import tensorrt` give this version when it is on PYTHONPATH; made on the first call.

    Raises:
        BindingsUnavailable: no gcc, no wheel for this Python, or no way to fetch it.
    """
    python = f"py{sys.version_info[0]}{sys.version_info[1]}"
    place = (folder or default_folder()) / f"{version}-{python}"
    if place.exists():
        return place
    if shutil.which("gcc") is None:
        raise BindingsUnavailable("gcc is not installed, and the stub libraries must be compiled")
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as draft:
        made = Path(draft) / "made"
        _install(version, made)
        _add_stubs(version, made)
        try:
            made.rename(place)
        except OSError:  # another process was faster
            if not place.exists():
                raise
    return place


def _install(version: str, place: Path) -> None:
    project, release = WHEELS[version]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    ran = subprocess.run(
        [*pip, "--only-binary", ":all:", "--target", str(place), f"{project}=={release}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode != 0:
        last = (ran.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise BindingsUnavailable(f"{project} {release} cannot be installed for this Python: {last}")


def _add_stubs(version: str, place: Path) -> None:
    major, minor, patch = (int(part) for part in version.split("."))
    number = major * 10000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch
    libraries = place / "tensorrt_libs"
    libraries.mkdir()
    for name in _LIBRARIES if major < 10 else _LIBRARIES[:-1]:
        soname = f"lib{name}.so.{major}"
        options = ["-shared", "-fPIC", "-fvisibility=hidden", f"-DLIB_{name}", f"-DTENSORRT_NUMBER={number}"]
        subprocess.run(["gcc", *options, f"-Wl,-soname,{soname}", "-o", libraries / soname, _STUB], check=True)
    (libraries / "__init__.py").write_text(_LOADER)
    (place / "tensorrt").mkdir(exist_ok=True)
    (place / "tensorrt" / "__init__.py").write_text(_PACKAGE)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/trt-bindings", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("versions", nargs="*", default=list(WHEELS), help=f"of {', '.join(WHEELS)}; all by default")
    parser.add_argument("--folder", type=Path, default=None, help="where to put them")
    asked = parser.parse_args()
    for version in asked.versions:
        if version not in WHEELS:
            parser.error(f"there are no bindings of {version}")
        try:
            print(f"{version}\t{bindings(version, asked.folder)}")
        except BindingsUnavailable as reason:
            print(f"{version}\t{reason}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
