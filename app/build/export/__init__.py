"""PyTorch files to ONNX. Only this package imports torch, and only in the processes that it starts."""

from app.build.export.parent import DEFAULT_OPSET, Exported, TorchReference, to_onnx, torch_reference

__all__ = ["DEFAULT_OPSET", "Exported", "TorchReference", "to_onnx", "torch_reference"]
