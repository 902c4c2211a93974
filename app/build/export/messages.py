"""What the export child is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from app.domain.builds import ModelFormat
from app.domain.errors import ShapesContradict
from app.domain.tensors import Shape, ShapeRange, TensorSpec, shape_text

INSTALL_TORCH = (
    "Install it beside the service: pip install -r requirements-torch.lock. Or upload ONNX, as"
    " torch.onnx.export(model, (example,), 'model.onnx', external_data=False) writes it."
)


@dataclass(frozen=True)
class AskedShapes:
    """The shapes of a request, by input; "" names the only one. As in BuildOptions."""

    input: Mapping[str, Shape] = field(default_factory=dict)
    min: Mapping[str, Shape] = field(default_factory=dict)
    opt: Mapping[str, Shape] = field(default_factory=dict)
    max: Mapping[str, Shape] = field(default_factory=dict)

    def by_input(self, names: tuple[str, ...]) -> dict[str, ShapeRange]:
        """Least, usual and largest shape of each input that the request speaks of.

        Raises:
            ShapesContradict: it speaks of another, or its shapes of one input do not fit together.
        """
        ranges = {}
        for key in {**self.input, **self.min, **self.opt, **self.max}:
            name = names[0] if key == "" and len(names) == 1 else key
            if name not in names:
                raise ShapesContradict(
                    f"The request gives a shape for {key[:80] or 'no input'!r}; the network's inputs are:"
                    f" {', '.join(names)}.",
                    hint="Write name:1x3x224x224; the name may be left out when there is one input.",
                )
            ranges[name] = self._range(key)
        return ranges

    def _range(self, key: str) -> ShapeRange:
        least, most = self.min.get(key), self.max.get(key)
        usual = self.opt.get(key, self.input.get(key)) or most or least or ()
        found = ShapeRange(least or usual, usual, most or usual)
        if not found.holds(usual) or len(found.max) != len(usual):
            raise ShapesContradict(
                f"The shapes asked of the input {key!r} are min {shape_text(found.min)}, opt {shape_text(usual)}, max"
                f" {shape_text(found.max)}.",
                hint="Give the same number of axes to all, with min at most opt and opt at most max on each.",
            )
        return found


@dataclass(frozen=True)
class ExportRequest:
    format: ModelFormat
    opset: int  # tried first
    opset_max: int  # newest that the backend reads
    shapes: AskedShapes
    dynamic_batch: bool  # make axis 0 of any length, where the network takes several


@dataclass(frozen=True)
class ExportAnswer:
    """Of a network that was exported and found equal to itself in PyTorch."""

    inputs: tuple[TensorSpec, ...]  # as the ONNX file declares them
    outputs: tuple[TensorSpec, ...]
    opset: int
    how: str  # the way that worked
    runtime: str  # "torch 2.13.0"
    is_dynamic: bool  # axis 0 of the inputs may have any length
