"""Train the example network on scikit-learn's handwritten digits and write examples/digits anew.

It needs packages that the service does not: torch==2.13.0, scikit-learn, onnx, onnxruntime, opencv-python-headless.

    python -m venv /tmp/train && /tmp/train/bin/pip install torch==2.13.0 scikit-learn onnx onnxruntime \
        opencv-python-headless
    /tmp/train/bin/python scripts/train_digits.py

The 1,797 images are real: 8×8 pixels, values 0..16, scanned from 43 writers' forms (UCI, "Optical Recognition of
Handwritten Digits"). Two thirds train, the rest is held out; nothing is chosen by looking at the held-out third.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

SEED = 20
HELD_OUT = 599  # a third of 1,797
CALIBRATION_PER_CLASS = 30
TEST_IMAGES = 20
EPOCHS = 30
ACCURACY_MIN = 0.97
FOLDER = Path(__file__).resolve().parent.parent / "examples" / "digits"

Pixels = NDArray[np.uint8]  # (images, 8, 8), 0..255
Labels = NDArray[np.int64]  # (images,), 0..9


@dataclass(frozen=True)
class Split:
    train: Pixels
    train_labels: Labels
    held_out: Pixels
    held_out_labels: Labels


def main() -> None:
    started = time.monotonic()
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums in another order end in other last bits
    split = digits()
    network = trained(split)
    shutil.rmtree(FOLDER / "test", ignore_errors=True)
    (FOLDER / "test").mkdir(parents=True)
    write_networks(network)
    write_images(split)
    accuracy = checked_accuracy(network, split)
    print(f"held-out accuracy {accuracy:.4f} on {HELD_OUT} images, {time.monotonic() - started:.0f} s")
    for path in sorted(path for path in FOLDER.iterdir() if path.is_file()):
        print(f"{path.stat().st_size:8d} bytes  {path.name}")


def digits() -> Split:
    data, labels = load_digits(return_X_y=True)
    pixels = np.rint(data.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    train, held_out, train_labels, held_out_labels = train_test_split(
        pixels, labels, test_size=HELD_OUT, stratify=labels, random_state=SEED
    )
    return Split(train, train_labels, held_out, held_out_labels)


def images(pixels: Pixels) -> Any:
    """The network's input: (images, 1, 8, 8), float32, 0..1."""
    return torch.from_numpy(pixels[:, None].astype(np.float32) / 255)


def trained(split: Split) -> Any:
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(512, 10),
    )
    inputs, targets = images(split.train), torch.from_numpy(split.train_labels)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(inputs)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[batch]), targets[batch], label_smoothing=0.05).backward()
            optimizer.step()
        schedule.step()
    return network.eval()


def write_networks(network: Any) -> None:
    example = torch.zeros(2, 1, 8, 8)
    torch.onnx.export(
        network,
        (example,),
        FOLDER / "digits.onnx",
        dynamo=False,
        opset_version=17,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
    )
    onnx.checker.check_model(FOLDER / "digits.onnx", full_check=True)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(network), buffer)
    write_without_debug(buffer, FOLDER / "digits.torchscript.pt")
    write_program(network)


def write_program(network: Any) -> None:
    """The same as a program of torch.export, its batch dynamic."""
    shapes = ({0: torch.export.Dim("batch")},)
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(network, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=shapes), buffer)
    write_without_debug(buffer, FOLDER / "digits.pt2")


def write_without_debug(archive: io.BytesIO, path: Path) -> None:
    """Copy an archive of torch, leaving out the source locations: paths of the machine that trained it."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            if not name.endswith(".debug_pkl"):
                content = source.read(name)
                if name.endswith("/models/model.json"):
                    content = without_stack_traces(content)
                target.writestr(undated(f"digits/{name.partition('/')[2]}"), content)


def without_stack_traces(program: bytes) -> bytes:
    described = json.loads(program)
    for node in described["graph_module"]["graph"]["nodes"]:
        node["metadata"].pop("stack_trace", None)
    return json.dumps(described).encode()


def write_images(split: Split) -> None:
    np.savez_compressed(FOLDER / "heldout.npz", images=split.held_out, labels=split.held_out_labels.astype(np.uint8))
    (FOLDER / "labels.txt").write_text("".join(f"{label}\n" for label in range(10)))
    with (FOLDER / "test" / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["file", "label"])
        for index in range(TEST_IMAGES):
            label = int(split.held_out_labels[index])
            name = f"{index:02d}_label{label}.png"
            (FOLDER / "test" / name).write_bytes(png(split.held_out[index]))
            rows.writerow([name, label])
    with zipfile.ZipFile(FOLDER / "calibration.zip", "w") as archive:
        for label in range(10):
            chosen = split.train[split.train_labels == label][:CALIBRATION_PER_CLASS]
            for index, pixels in enumerate(chosen):
                archive.writestr(undated(f"{label}/{index:03d}.png"), png(pixels))


def undated(name: str) -> zipfile.ZipInfo:
    """A zip entry with a fixed date and mode, so that the same content is the same archive."""
    entry = zipfile.ZipInfo(name)
    entry.external_attr = 0o644 << 16
    return entry


def png(pixels: Pixels) -> bytes:
    written, data = cv2.imencode(".png", pixels)
    if not written:
        raise RuntimeError("OpenCV could not write a PNG.")
    return data.tobytes()


def checked_accuracy(network: Any, split: Split) -> float:
    """Accuracy on the held-out third, the same in torch, ONNX Runtime and the reloaded TorchScript and .pt2 files."""
    inputs = images(split.held_out)
    reloaded = torch.jit.load(FOLDER / "digits.torchscript.pt")
    program = torch.export.load(FOLDER / "digits.pt2").module()
    session = onnxruntime.InferenceSession(FOLDER / "digits.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        logits = network(inputs).numpy()
        np.testing.assert_array_equal(reloaded(inputs).numpy(), logits)
        np.testing.assert_allclose(program(inputs).numpy(), logits, atol=1e-4)
    np.testing.assert_allclose(session.run(["logits"], {"image": inputs.numpy()})[0], logits, atol=1e-4)
    accuracy = float(np.mean(logits.argmax(axis=1) == split.held_out_labels))
    if accuracy < ACCURACY_MIN:
        raise SystemExit(f"held-out accuracy {accuracy:.4f}; at least {ACCURACY_MIN} is wanted")
    return accuracy


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    main()
