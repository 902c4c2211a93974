"""Files that people send as networks and that are none, and the line that makes the right file of each."""

from __future__ import annotations

import io
import pickletools
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import BinaryIO

from app.domain.errors import ModelRejected
from app.domain.file_names import AT_MISSING, is_file_name

_PICKLE_BYTES_MAX = 16 << 20  # read of a pickle to see what is in it
_STEPS_MAX = 500_000  # instructions of a pickle that are looked at
_HARMLESS = re.compile(r"torch(?:\._utils|\.storage|\._tensor|\.serialization)?|collections|_codecs|numpy(?:\..*)?")

SAVE = "torch.jit.save(torch.jit.script(model.eval()), 'model.pt')"
_KERAS = "keras.saving.load_model('model.keras').export('model.onnx', format='onnx')"
_IMAGE = "Images go to POST /infer/{name}; a zip of images is sent as -F calibration=@images.zip."

TENSORRT = (b"ftrt", b"ptrt")  # how a TensorRT engine begins
_NETWORK_OR_ENGINES = (
    "Send the network that it was built from; the engine itself is for POST /engines of a device with TensorRT."
)

# First bytes, and what to do instead.
_KNOWN: tuple[tuple[bytes, str, str], ...] = (
    (b"\xff\xd8\xff", "a JPEG image", _IMAGE),
    (b"\x89PNG", "a PNG image", _IMAGE),
    (b"GIF8", "a GIF image", _IMAGE),
    (b"\x89HDF", "an HDF5 (Keras) file", f"Export it to ONNX where it was trained: {_KERAS}"),
    *((magic, "a TensorRT engine", _NETWORK_OR_ENGINES) for magic in TENSORRT),
    (b"GGUF", "a GGUF language model", "It holds weights for llama.cpp; send the network as ONNX."),
    (b"\x7fELF", "a compiled library", "Send the network that it was compiled from."),
    (b"BZh", "a bzip2 archive", "Send the file itself, or a zip or tar of it."),
    (b"\xfd7zXZ\x00", "an xz archive", "Send the file itself, or a zip or tar of it."),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "Send the file itself, or a zip or tar of it."),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Send the file itself, or a zip or tar of it."),
    (b"PK\x05\x06", "an empty zip archive", "Send the file itself."),
)


def rejected(what: str, hint: str) -> ModelRejected:
    return ModelRejected(f"The model file is {what}. A network is wanted: ONNX, TorchScript or .pt2.", hint=hint)


def refuse_known(file: BinaryIO, head: bytes, size_bytes: int) -> None:
    """Refuse a file that is no archive and is known to be no ONNX.

    Args:
        head: its first kilobyte, or all of it.

    Raises:
        ModelRejected: says what it is and how to make the right file.
    """
    for magic, what, hint in _KNOWN:
        if head.startswith(magic):
            raise rejected(what, hint)
    if head[8:12] == b"WEBP" and head.startswith(b"RIFF"):
        raise rejected("a WebP image", _IMAGE)
    if head[4:8] == b"TFL3":
        raise rejected(
            "a TFLite file",
            "Convert it to ONNX: python -m tf2onnx.convert --tflite model.tflite --output model.onnx",
        )
    if _is_safetensors(head, size_bytes):
        raise rejected(
            "a safetensors file: weights without their network",
            f"Load them into the network and save that: model.load_state_dict(safetensors.torch.load_file("
            f"'model.safetensors')); {SAVE}",
        )
    if head.startswith(b"\x80") and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        file.seek(0)
        is_torch = head.startswith(b"\x80\x02\x8a\x0a\x6c\xfc")  # the number that torch.save once began with
        raise pickle_rejected(io.BytesIO(file.read(_PICKLE_BYTES_MAX)), skipped=3 if is_torch else 0)
    _refuse_text(head)


def pickle_rejected(content: io.BytesIO, skipped: int = 0) -> ModelRejected:
    """Why a pickle is refused: told from the names in it, without unpickling.

    Args:
        skipped: pickles in front of the one that holds the object.
    """
    names = _names_in(content, skipped)
    if names is None:
        return rejected("a Python pickle", f"Save the network so that no code of yours is needed to open it: {SAVE}")
    others = [f"{module}.{name}" for module, name in names if not _HARMLESS.fullmatch(module)]
    if others:
        return rejected(
            f"a pickled object of the class {others[0][:80]}: opening it needs that class and runs its code",
            f"Save the network without its Python: {SAVE}",
        )
    if any(module.startswith("torch") for module, _ in names):
        return rejected(
            "a state_dict: weights without their network",
            f"Load them into the network and save that: model.load_state_dict(torch.load('weights.pt')); {SAVE}",
        )
    return rejected("a Python pickle", f"Save the network so that no code of yours is needed to open it: {SAVE}")


def _names_in(content: io.BytesIO, skipped: int) -> list[tuple[str, str]] | None:
    """Module and name of everything that the pickle would import; None when it cannot be read."""
    names: list[tuple[str, str]] = []
    strings: list[str] = []
    with suppress(ValueError, IndexError, EOFError, OverflowError):
        for _ in range(skipped):
            for _ in _steps(content):
                pass
        for operation, argument in _steps(content):
            if operation == "GLOBAL":
                module, _, name = str(argument).partition(" ")
                names.append((module, name))
            elif operation == "STACK_GLOBAL":
                names.append((strings[-2], strings[-1]))
            elif isinstance(argument, str):
                strings.append(argument)
        return names
    return names or None


def _steps(content: io.BytesIO) -> Iterator[tuple[str, object]]:
    """The instructions of one pickle, with their arguments."""
    for operation, argument, _ in islice(pickletools.genops(content), _STEPS_MAX):
        yield operation.name, argument


def _is_safetensors(head: bytes, size_bytes: int) -> bool:
    """Eight bytes that say how long the JSON after them is."""
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length <= size_bytes - 8


def _refuse_text(head: bytes) -> None:
    if is_file_name(head):
        raise rejected("a file's name, not the file", AT_MISSING)
    if _is_text(head):
        raise rejected(
            "text", "Check the path after the @ of curl's -F model=@…: this may be an error page or a script."
        )


def _is_text(head: bytes) -> bool:
    text = head.decode(errors="replace").rstrip("\ufffd")  # a character may be cut at the end
    return len(head) > 8 and all(c.isprintable() or c in "\t\r\n\f" for c in text) and "\ufffd" not in text
