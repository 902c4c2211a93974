"""The server stays small: what reads and builds networks lives in other processes."""

from __future__ import annotations

from pathlib import Path

from tests.service import ROOT, Service, resident_bytes

DIGITS = ROOT / "examples" / "digits"
RESIDENT_MIB_MAX = 200


def loaded_libraries(pid: int) -> set[str]:
    """Paths of everything that the process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}


def test_a_server_with_a_warm_engine_has_neither_torch_nor_onnx_and_stays_under_200_mib(own_service: Service) -> None:
    own_service.start()
    assert own_service.process is not None
    with own_service.client() as client:
        job = own_service.build(client, (DIGITS / "digits.onnx").read_bytes(), "digits")
        assert job["state"] == "succeeded", job
        client.post("/models", content=(DIGITS / "digits.torchscript.pt").read_bytes())
        image = (DIGITS / "test" / "05_label7.png").read_bytes()
        answer = client.post("/infer/digits", content=image, headers={"Content-Type": "image/png"})
        assert answer.status_code == 200, answer.text

        libraries = loaded_libraries(own_service.process.pid)
        resident_mib = resident_bytes(own_service.process.pid) / 2**20

    assert any("onnxruntime" in path for path in libraries)  # the engine is warm
    assert [path for path in libraries if "/torch/" in path or "/onnx/" in path] == []
    assert resident_mib < RESIDENT_MIB_MAX
