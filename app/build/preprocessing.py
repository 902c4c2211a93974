"""Which recipe turns an image into a row of this model's input, and whether the labels fit its output."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from pydantic import ValidationError

from app.domain.errors import InvalidOption, LabelsContradict, PreprocessContradicts
from app.domain.preprocess import SIZE_HINT, Preprocess, default_preprocess
from app.domain.tensors import ANY, Shape, Signature, TensorSpec, described, shape_text
from app.storage.codec import decode

_FIELDS = {field.name for field in fields(Preprocess)}


def resolved_preprocess(signature: Signature, requested: Mapping[str, Any] | None) -> Preprocess | None:
    """The recipe of an engine: what the input suggests, overridden by what was asked for.

    Returns:
        None when nothing was asked for and the model's only input is not an image of fixed size.

    Raises:
        PreprocessContradicts: the recipe cannot make a row of the input, or is malformed.
    """
    if len(signature.inputs) != 1:
        if requested is None:
            return None
        raise PreprocessContradicts(
            f"A recipe makes one input; the model has {len(signature.inputs)}:"
            f" {described(signature.inputs) or 'none'}.",
            hint="Leave preprocess out and send tensors.",
        )
    spec = _pinned(signature.inputs[0], signature)
    if requested is None:
        return default_preprocess(spec)
    _refuse_unknown(requested, spec)
    recipe = _parsed(_base(spec, requested), requested)
    _refuse_misfit(recipe, signature)
    return recipe


def leaves_size_open(signature: Signature) -> bool:
    """Whether the only input is an image of any size: nothing says what size the network was trained with."""
    if len(signature.inputs) != 1 or default_preprocess(signature.inputs[0]) is not None:
        return False
    spec = signature.inputs[0]
    return (
        default_preprocess(replace(spec, shape=tuple(1 if length == ANY else length for length in spec.shape)))
        is not None
    )


def refuse_labels(labels: tuple[str, ...], signature: Signature, classes: int) -> None:
    """Raise LabelsContradict unless there are no labels or one for each class.

    Args:
        classes: the length of the last axis of the answer, as observed.
    """
    if not labels:
        return
    if not signature.is_classifier:
        raise LabelsContradict(
            f"Labels name the classes of a model with one floating output of shape rows × classes; this one has"
            f" {described(signature.outputs)}.",
            hint="Leave labels out.",
        )
    if len(labels) != classes:
        raise LabelsContradict(
            f"There are {len(labels)} labels; the model has {classes} classes.",
            hint=f"Give exactly {classes} labels, in the order of the classes.",
        )


def _pinned(spec: TensorSpec, signature: Signature) -> TensorSpec:
    """The input with the lengths that its range leaves no choice."""
    limits = signature.ranges.get(spec.name)
    if limits is None:
        return spec
    shape = tuple(low if low == high else ANY for low, high in zip(limits.min, limits.max, strict=True))
    return TensorSpec(spec.name, spec.dtype, shape)


def _refuse_unknown(requested: Mapping[str, Any], spec: TensorSpec) -> None:
    unknown = sorted(set(requested) - _FIELDS)
    if unknown:
        raise PreprocessContradicts(
            f"The recipe has unknown fields: {', '.join(unknown)[:200]}.",
            hint=f"Its fields are: {', '.join(sorted(_FIELDS))}.",
        )
    if requested.get("input", spec.name) != spec.name:
        raise PreprocessContradicts(
            f"The recipe is for the input {str(requested['input'])[:80]!r}; the model's is {spec.name!r}.",
            hint="Leave input out when there is only one.",
        )


def _base(spec: TensorSpec, requested: Mapping[str, Any]) -> Preprocess:
    """The default recipe of the input, its open height and width taken from the request."""
    for shape in _guesses(spec.shape, requested):
        recipe = default_preprocess(replace(spec, shape=shape))
        if recipe is not None and requested.get("layout", recipe.layout) == recipe.layout:
            return recipe
    raise PreprocessContradicts(
        f"The input is {described((spec,))}: no recipe with this layout and size makes a row of it.",
        hint=f"Give the size of its images: {SIZE_HINT}."
        if leaves_size_open(Signature((spec,), ()))
        else "An image input has four axes and 1 or 3 channels; give layout where its channels are not in axis 1.",
    )


def _guesses(shape: Shape, requested: Mapping[str, Any]) -> Iterator[Shape]:
    """The shape with its open lengths filled in, for each layout."""
    height, width = (value if isinstance(value, int) else ANY for value in map(requested.get, ("height", "width")))
    channels = 1 if requested.get("color") == "gray" else 3
    for wanted in ((1, channels, height, width), (1, height, width, channels)):
        if len(shape) == len(wanted):
            yield tuple(want if have == ANY else have for have, want in zip(shape, wanted, strict=True))


def _parsed(base: Preprocess, requested: Mapping[str, Any]) -> Preprocess:
    merged = {**asdict(base), **requested}
    try:
        return decode(Preprocess, json.dumps(merged))
    except ValidationError as error:
        first = error.errors()[0]
        raise PreprocessContradicts(
            f"The recipe's {'.'.join(map(str, first['loc'])) or 'fields'} cannot be read: {first['msg']}.",
            hint='For example: {"resize": "center_crop", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}.',
        ) from error
    except (InvalidOption, TypeError, ValueError) as error:
        raise PreprocessContradicts(str(error), hint=getattr(error, "hint", "Give plain numbers and words.")) from error


def _refuse_misfit(recipe: Preprocess, signature: Signature) -> None:
    spec = signature.inputs[0]
    if recipe.dtype is not spec.dtype:
        raise PreprocessContradicts(
            f"The recipe makes {recipe.dtype.value}; the input {spec.name!r} takes {spec.dtype.value}.",
            hint="Leave dtype out: it follows from the model.",
        )
    limits = signature.ranges.get(spec.name)
    row = recipe.row_shape
    if tuple(spec.shape[1:]) != row and not spec.fits((max(spec.shape[0], 1), *row)):
        raise PreprocessContradicts(
            f"The recipe makes rows of {shape_text(row)}; the input {spec.name!r} is {shape_text(spec.shape)}.",
            hint="Change width, height, color or layout, or leave them out where the model fixes them.",
        )
    if limits is not None and not limits.holds((limits.opt[0], *row)):
        raise PreprocessContradicts(
            f"The recipe makes rows of {shape_text(row)}; the engine is asked to take {shape_text(limits.min)} to"
            f" {shape_text(limits.max)}.",
            hint="Give width and height within the shapes asked for.",
        )
