"""PyTorch networks of many kinds, with random weights; small, but for ResNet-18. Imports torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """As in torchvision, with weights scaled so that answers stay of moderate size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        blocks, channels = [], 64
        for out, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
            blocks.append(BasicBlock(channels, out, stride))
            channels = out
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))


class FixedImages(nn.Module):
    """A convolution and a linear layer that fits images of 28×28 only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 14 * 14, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(torch.flatten(torch.max_pool2d(torch.relu(self.conv(image)), 2), 1))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(6, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.left(a) * torch.tanh(self.right(b))


class Dictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.fc(x)
        return {"scores": y, "best": torch.argmax(y, dim=1)}


class Branching(nn.Module):
    """Its answer depends on a decision that a trace would freeze."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        y = y * 2 if bool(x.sum() > 0) else y - 1
        for _ in range(3):
            y = torch.relu(y) + x
        return y


class Words(nn.Module):
    """Token numbers to one score per sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.fc = nn.Linear(6, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(tokens))
        return self.fc(states[:, -1])


class FixedBatch(nn.Module):
    """Works on two rows and on nothing else."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 8).sum(1) * torch.tensor([1.0, 2.0])


class Boxes(NamedTuple):
    boxes: Tensor
    scores: Tensor


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Boxes:
        y = self.fc(x)
        return Boxes(y[:, :4], y[:, 4])


class Drawing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


# --- hostile: what they try happens while the file is loaded -----------------------------------------------------


class Reading(nn.Module):
    """Reads a file of the system into its weights."""

    def __init__(self, victim: str, size_bytes: int) -> None:
        super().__init__()
        self.victim, self.size_bytes = victim, size_bytes
        self.loot = torch.zeros(1, dtype=torch.uint8)

    @torch.jit.export
    def __getstate__(self) -> tuple[str, int, bool]:
        return (self.victim, self.size_bytes, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, int, bool]) -> None:
        self.victim, self.size_bytes, self.training = state[0], state[1], state[2]
        self.loot = torch.from_file(state[0], False, state[1], dtype=torch.uint8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.loot.sum()


class Overwriting(nn.Module):
    """Maps a file of the system and fills it with zeros."""

    def __init__(self, victim: str, size_bytes: int) -> None:
        super().__init__()
        self.victim, self.size_bytes = victim, size_bytes
        self.target = torch.zeros(1, dtype=torch.uint8)

    @torch.jit.export
    def __getstate__(self) -> tuple[str, int, bool]:
        return (self.victim, self.size_bytes, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, int, bool]) -> None:
        self.victim, self.size_bytes, self.training = state[0], state[1], state[2]
        self.target = torch.from_file(state[0], True, state[1], dtype=torch.uint8)
        self.target.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.target.sum()


class Saving(nn.Module):
    """Writes a new file."""

    def __init__(self, victim: str) -> None:
        super().__init__()
        self.victim = victim

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return (self.victim, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.victim, self.training = state[0], state[1]
        torch.save(torch.zeros(3), state[0])

    def forward(self, x: Tensor) -> Tensor:
        return x


class Hungry(nn.Module):
    """Asks for more memory than there is any use for."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(20_000_000_000).sum()


class Endless(nn.Module):
    """Never comes to the end of its loading."""

    @torch.jit.export
    def __getstate__(self) -> bool:
        return self.training

    @torch.jit.export
    def __setstate__(self, state: bool) -> None:
        self.training = state
        x = torch.zeros(1)
        while bool(x.sum() < 1):
            x = x * 1

    def forward(self, x: Tensor) -> Tensor:
        return x


# --- saved ----------------------------------------------------------------------------------------------------------


def seeded(network: type[nn.Module], *arguments: Any) -> nn.Module:
    torch.manual_seed(20)
    return network(*arguments).eval()


def scripted(network: nn.Module, folder: Path, name: str = "scripted.pt") -> Path:
    with _quietly():
        torch.jit.save(torch.jit.script(network), str(folder / name))
    return folder / name


def traced(network: nn.Module, folder: Path, *example: Tensor, name: str = "traced.pt") -> Path:
    with _quietly():
        torch.jit.save(torch.jit.trace(network, example), str(folder / name))
    return folder / name


def program(network: nn.Module, folder: Path, *example: Tensor, rows: bool = True, name: str = "program.pt2") -> Path:
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in example) if rows else None
    with _quietly():
        torch.export.save(torch.export.export(network, example, dynamic_shapes=shapes), str(folder / name))
    return folder / name


def opened_here(path: Path) -> Any:
    """A saved file, opened in this process; a program is run once."""
    with _quietly():
        if path.suffix != ".pt2":
            return torch.jit.load(str(path))
        module = torch.export.load(str(path)).module()
        module(torch.zeros(2, 4))
        return module


@contextmanager
def _quietly() -> Iterator[None]:
    """TorchScript is deprecated, and says so each time; people go on uploading it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
