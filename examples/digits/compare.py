"""Infer the test images on a running service and compare: python compare.py [URL] [ENGINE].

Exit status 0 when at least 90 % of the digits are right.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from app.client import Client

FOLDER = Path(__file__).parent / "test"
RIGHT_MIN = 0.9


def main(url: str = "http://127.0.0.1:8000", engine: str = "digits") -> int:
    with (FOLDER / "labels.csv").open(newline="") as file:
        truth = {row["file"]: row["label"] for row in csv.DictReader(file)}
    with Client(url) as client:
        answer = client.infer(engine, [FOLDER / name for name in truth], top=1)
    table = Table("image", "true", "predicted", "probability", "")
    right = 0
    for (name, label), (best, *_) in zip(truth.items(), answer["predictions"], strict=True):
        is_right = best["label"] == label
        right += is_right
        table.add_row(name, label, best["label"], f"{best['probability']:.1%}", "✓" if is_right else "✗")
    console = Console()
    console.print(table)
    console.print(f"{right} of {len(truth)} correct, by {answer['engine']}", highlight=False)
    return 0 if right >= RIGHT_MIN * len(truth) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
