"""The confined child that opens a PyTorch file: exports it to ONNX, or answers as it does."""

from __future__ import annotations

import os
import sys

from app.build.channel import ChannelBroken, Message
from app.build.confined_child import Confined, serve
from app.build.export.messages import INSTALL_TORCH, ExportAnswer, ExportRequest
from app.domain.builds import ModelFormat
from app.domain.errors import BuildFailed, BuildKilled, TorchMissing
from app.storage.codec import decode, encode


def main() -> int:
    return serve("app.build.export", _imports, _work)


def _imports(request: Message) -> None:
    try:
        import torch
    except ImportError as error:
        raise TorchMissing(
            "The model is a PyTorch file, and PyTorch is not installed on this device.",
            hint=INSTALL_TORCH,
        ) from error
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))
    if request["task"] == "export":
        import app.build.export.example
        import app.build.export.ladder
    else:
        import app.build.export.networks  # noqa: F401


def _work(confined: Confined) -> None:
    try:
        (_export if confined.request["task"] == "export" else _answer)(confined)
    except MemoryError as error:
        raise BuildKilled(
            "The uploaded model asked for more memory than it may use: 2 GiB and eight times the file.",
            hint="Give smaller shapes, or export the network to ONNX where it was trained and upload that.",
        ) from error


def _export(confined: Confined) -> None:
    import torch

    from app.build.export.example import opened_with_plan
    from app.build.export.ladder import exported

    request = decode(ExportRequest, confined.request["request"])
    network, plan = opened_with_plan(confined.source, request)
    found = exported(
        network, plan, request.opset, request.opset_max, lambda text: confined.channel.send({"step": text})
    )
    with open(confined.request["target"], "wb", closefd=False) as file:  # a descriptor: the parent opened it
        file.write(found.model)
    answer = ExportAnswer(
        inputs=found.inputs,
        outputs=found.outputs,
        opset=found.opset,
        how=found.how,
        runtime=f"torch {torch.__version__}",
        is_dynamic=plan.is_dynamic,
    )
    confined.channel.send({"answer": encode(answer)})


def _answer(confined: Confined) -> None:
    """Run the network on each message's tensors until the parent hangs up."""
    import torch

    from app.build.export.networks import opened

    network = opened(confined.source, ModelFormat(confined.request["format"]))
    confined.channel.send({"runtime": f"torch {torch.__version__}"})
    while True:
        try:
            _, inputs = confined.channel.receive()
        except ChannelBroken:
            return
        try:
            confined.channel.send({}, network.run(inputs))
        except BuildFailed as error:
            confined.channel.send({"refused": error.detail})


if __name__ == "__main__":
    sys.exit(main())
