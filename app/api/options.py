"""Build options as clients write them (form fields or one JSON object) → BuildOptions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from app.api.names import no_such
from app.api.problems import described
from app.domain.builds import Builder, BuildOptions, Int8Method, Precision, Ranging
from app.domain.errors import InvalidOption
from app.domain.preprocess import PRESETS, Color, Interpolation, Layout, Resize
from app.domain.tensors import Shape

_SHAPE = re.compile(r"[0-9]{1,9}(?:x[0-9]{1,9}){0,15}")


def _json(value: Any) -> Any:
    """A form field that holds JSON, parsed; anything else as it is."""
    if isinstance(value, str):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"is not JSON: {error}") from error
    return value


def _precision(value: Any) -> Any:
    """A precision in any case; UNKNOWN is no wish."""
    known = [precision.value for precision in Precision if precision is not Precision.UNKNOWN]
    text = value.lower() if isinstance(value, str) else value
    if text not in known:
        raise ValueError(f"should be {', '.join(known[:-1])} or {known[-1]}")
    return text


def _tolerance(value: Any) -> Any:
    value = _json(value)
    if value is not None and not isinstance(value, dict):
        raise ValueError('should be a JSON object as {"sqnr_db": 40, "top1": 0.99}')
    return value


def _shapes(value: Any) -> Any:
    """`name:1x3x224x224,other:1x10`, the name left out for a single input → {name: (1, 3, 224, 224), …}."""
    if not isinstance(value, str):
        return value
    shapes: dict[str, Shape] = {}
    for part in filter(None, (part.strip() for part in value.split(","))):
        name, _, text = part.rpartition(":")
        if not _SHAPE.fullmatch(text):
            raise ValueError(f"{part[:80]!r} is not a shape; write name:1x3x224x224")
        if name in shapes:
            raise ValueError(
                f"the input {name!r} appears twice" if name else "lengths are separated by x, as 1x3x224x224"
            )
        shapes[name] = tuple(int(length) for length in text.split("x"))
    return shapes


def _preprocess(value: Any) -> Any:
    """A preset's name, or an object of the recipe's fields with an optional `preset` to start from."""
    if isinstance(value, str) and not value.lstrip().startswith("{"):
        value = {"preset": value.strip()}
    value = _json(value)
    if isinstance(value, dict) and "preset" in value:
        preset = value["preset"]
        if not isinstance(preset, str) or preset not in PRESETS:
            raise ValueError(f"there is no preset {str(preset)[:40]!r}; there are {', '.join(sorted(PRESETS))}")
        value = {**PRESETS[preset], **{name: item for name, item in value.items() if name != "preset"}}
    return value


def _labels(value: Any) -> Any:
    """A JSON list, or names separated by line ends or commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return _json(value)
    return [label.strip() for label in re.split(r"[\r\n]+|,", value) if label.strip()]


def _names(value: Any) -> Any:
    """A JSON list, or names separated by commas; "" is none of them."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return _json(value)
    return [name.strip().upper() for name in value.split(",") if name.strip()]


class PreprocessSchema(BaseModel):
    """The recipe's fields that the client decides; the rest follows from the model's input."""

    model_config = ConfigDict(extra="forbid")

    input: str | None = None
    width: int | None = Field(None, ge=1, le=16384, description="pixels")
    height: int | None = Field(None, ge=1, le=16384, description="pixels")
    resize: Resize | None = None
    color: Color | None = None
    scale: float | None = Field(None, description="factor on pixels of 0..255, before mean and std; 1/255 = 0.0039216")
    mean: list[float] | float | None = None
    std: list[float] | float | None = None
    layout: Layout | None = None
    interpolation: Interpolation | None = None
    crop: float | None = None
    pad: int | None = None

    def fields(self) -> dict[str, Any]:
        given = self.model_dump(mode="json", exclude_none=True)
        return {
            name: [item] if name in ("mean", "std") and isinstance(item, float) else item
            for name, item in given.items()
        }


class ToleranceSchema(BaseModel):
    """How far the engine may be from the source model; what is left out keeps the precision's default."""

    model_config = ConfigDict(extra="forbid")

    sqnr_db: float | None = Field(None, ge=-100, le=200)
    cosine: float | None = Field(None, ge=-1, le=1)
    max_rel: float | None = Field(None, ge=0)
    top1: float | None = Field(None, ge=0, le=1)


TacticSource = Annotated[str, Field(pattern="^[A-Z][A-Z0-9_]{0,63}$")]
Length = Annotated[int, Field(ge=0, le=999_999_999)]
Shapes = Annotated[dict[str, Annotated[tuple[Length, ...], Field(max_length=16)]], BeforeValidator(_shapes)]


class OptionsSchema(BaseModel):
    """Build options. As form fields each is text; in the `options` field they are one JSON object."""

    model_config = ConfigDict(extra="forbid")

    backend: str = Field("auto", max_length=32, description="auto, or a backend that GET /device lists")
    precision: Annotated[Precision, BeforeValidator(_precision)] = Field(
        Precision.FP32, description="auto builds all that are possible and publishes the fastest that stays accurate"
    )
    input_shapes: Shapes = Field(default_factory=dict, description="name:1x3x224x224,other:1x10 as in trtexec")
    min_shapes: Shapes = Field(default_factory=dict, description="smallest lengths of dynamic axes, as input_shapes")
    opt_shapes: Shapes = Field(default_factory=dict, description="lengths to be fastest at, as input_shapes")
    max_shapes: Shapes = Field(default_factory=dict, description="largest lengths of dynamic axes, as input_shapes")
    preprocess: Annotated[PreprocessSchema | None, BeforeValidator(_preprocess)] = Field(
        None, description="the recipe for images: an object, or a preset's name", examples=sorted(PRESETS)
    )
    labels: Annotated[list[Annotated[str, Field(max_length=200)]], BeforeValidator(_labels)] = Field(
        default_factory=list,
        max_length=100_000,
        description="class names: a JSON list, or separated by commas or lines",
    )
    tolerance: Annotated[ToleranceSchema | None, BeforeValidator(_tolerance)] = Field(
        None, description='how far from the model, as {"sqnr_db": 40, "top1": 0.99}; what is left out keeps its default'
    )
    simplify: bool = Field(True, description="simplify the graph first; its failure is a warning")
    opset: int | None = Field(None, ge=9, le=25, description="of the export of a PyTorch network")
    dynamic_batch: bool = Field(False, description="make a fixed batch dynamic, or fail")
    fold_preprocess: bool = Field(False, description="the recipe's arithmetic in the graph: uint8 images in")
    int8_method: Int8Method | None = Field(
        None, description="calibrator (TensorRT's own) or qdq; default: the backend's"
    )
    int8_ranging: Ranging | None = Field(None, description="how ranges follow from the samples")
    tf32: bool = Field(False, description="TensorRT: 19-bit products in fp32 layers")
    workspace_mib: int | None = Field(None, ge=1, le=1 << 20, description="TensorRT: scratch memory of a layer")
    tactic_sources: Annotated[list[TacticSource] | None, BeforeValidator(_names)] = Field(
        None, max_length=16, description="TensorRT: names as CUBLAS, CUDNN, separated by commas; empty: its own kernels"
    )
    optimization_level: int | None = Field(None, ge=0, le=5, description="TensorRT: 0 builds fast, 5 runs fast")
    dla_core: int | None = Field(None, ge=0, le=7, description="TensorRT: run on this DLA core")
    builder: Builder = Field(Builder.API, description="api, or trtexec for TensorRT")
    timeout_s: float | None = Field(None, gt=0, le=86_400, description="time limit of one attempt, in seconds")

    def to_domain(self) -> BuildOptions:
        return BuildOptions(
            backend=self.backend,
            precision=self.precision,
            input_shapes=self.input_shapes,
            min_shapes=self.min_shapes,
            opt_shapes=self.opt_shapes,
            max_shapes=self.max_shapes,
            preprocess=self.preprocess.fields() if self.preprocess else None,
            labels=tuple(self.labels),
            tolerance=self.tolerance.model_dump(exclude_none=True) if self.tolerance else None,
            simplify=self.simplify,
            opset=self.opset,
            dynamic_batch=self.dynamic_batch,
            fold_preprocess=self.fold_preprocess,
            int8_method=self.int8_method,
            int8_ranging=self.int8_ranging,
            tf32=self.tf32,
            workspace_mib=self.workspace_mib,
            tactic_sources=tuple(self.tactic_sources) if self.tactic_sources is not None else None,
            optimization_level=self.optimization_level,
            dla_core=self.dla_core,
            builder=self.builder,
            timeout_s=self.timeout_s,
        )


def build_options(fields: Mapping[str, Any]) -> BuildOptions:
    """Options from form fields; an `options` field with one JSON object is merged in, single fields win.

    Raises:
        InvalidOption: an option is unknown, or its value cannot be one.
    """
    given = dict(fields)
    together = given.pop("options", None)
    try:
        merged = {**_object(together), **given}
        return OptionsSchema.model_validate(merged).to_domain()
    except ValidationError as error:
        raise _refused(error.errors()) from error


_GROUPS: dict[tuple[str, ...], type[BaseModel]] = {
    (): OptionsSchema,
    ("preprocess",): PreprocessSchema,
    ("tolerance",): ToleranceSchema,
}


def _refused(found: Sequence[Any]) -> InvalidOption:
    """The refusal of what a validator found; unknown names first, with those that there are."""
    unknown = next((item["loc"] for item in found if item["type"] == "extra_forbidden"), None)
    if unknown is None:
        names = ", ".join(dict.fromkeys(str(item["loc"][0]) for item in found))
        return InvalidOption(described(found), hint=f"/docs describes {names}.")
    group, name = unknown[:-1], str(unknown[-1])
    known = list(_GROUPS[group].model_fields)
    kind = f"fields of {group[0]}" if group else "options"
    return InvalidOption(
        no_such(f"field of {group[0]}" if group else "option", name, known),
        hint=f"The {kind} are: {', '.join(known)}; /docs describes them.",
    )


def _object(text: Any) -> dict[str, Any]:
    if text is None or text == "":
        return {}
    try:
        value = _json(text)
    except ValueError as error:
        raise InvalidOption(f"The field options {error}.", hint="Send one JSON object.") from error
    if not isinstance(value, dict):
        raise InvalidOption("The field options is not a JSON object.", hint='Send for example {"precision": "fp32"}.')
    return value
