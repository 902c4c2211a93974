"""A look into a calibration set: a few of its images through an engine's recipe."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from app.domain.preprocess import Color, Preprocess, framed
from tests.e2e.conftest import DIGITS
from tests.samples import archive, encoded, npy, picture


def stored(client: httpx.Client, path: Path) -> str:
    answer = client.post("/calibrations", content=path.read_bytes())
    assert answer.status_code == 201, answer.text
    found: str = answer.json()["id"]
    return found


def image(sample: dict[str, Any]) -> Any:
    return cv2.imdecode(np.frombuffer(base64.b64decode(sample["png"]), np.uint8), cv2.IMREAD_UNCHANGED)


def test_the_images_are_what_the_engines_recipe_frames(
    client: httpx.Client, digits: dict[str, Any], tmp_path: Path
) -> None:
    photo = encoded(picture(1, 40, 30), ".png")
    calibration = stored(client, archive(tmp_path / "one.zip", {"a/photo.png": photo}))

    preview = client.get(f"/calibrations/{calibration}/preview", params={"engine": digits["ref"]}).json()

    recipe = Preprocess(input="image", width=8, height=8, color=Color.GRAY)
    assert (preview["width"], preview["height"], preview["images"]) == (8, 8, 1)
    assert [sample["file"] for sample in preview["samples"]] == ["a/photo.png"]
    assert (image(preview["samples"][0]) == framed(photo, recipe)).all()


def test_without_an_engine_whole_images_are_shown_spread_over_the_set(client: httpx.Client) -> None:
    calibration = stored(client, DIGITS / "calibration.zip")

    preview = client.get(f"/calibrations/{calibration}/preview", params={"n": 10}).json()

    assert preview["files"] == preview["images"] == 300
    assert [sample["file"].split("/")[0] for sample in preview["samples"]] == [str(digit) for digit in range(10)]
    assert image(preview["samples"][0]).shape == (96, 96, 3)


def test_files_that_are_no_images_are_counted_but_not_shown(client: httpx.Client, tmp_path: Path) -> None:
    files = {"broken.png": b"not a png", "rows.npy": npy(np.zeros((2, 4), np.float32))}
    calibration = stored(client, archive(tmp_path / "odd.zip", files))

    preview = client.get(f"/calibrations/{calibration}/preview").json()

    assert (preview["images"], preview["files"]) == (1, 2)
    assert preview["samples"] == [{"file": "broken.png", "png": None}]


def test_a_preview_that_the_client_holds_is_not_made_again(client: httpx.Client) -> None:
    calibration = stored(client, DIGITS / "calibration.zip")
    first = client.get(f"/calibrations/{calibration}/preview")

    again = client.get(f"/calibrations/{calibration}/preview", headers={"If-None-Match": first.headers["etag"]})
    other = client.get(f"/calibrations/{calibration}/preview?n=3", headers={"If-None-Match": first.headers["etag"]})

    assert (again.status_code, other.status_code) == (304, 200)


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("?n=0", 422, "invalid_request"),
        ("?n=25", 422, "invalid_request"),
        ("?engine=nobody", 404, "engine_not_found"),
        ("?engine=../etc", 422, "invalid_name"),
    ],
)
def test_what_cannot_be_shown_is_refused(client: httpx.Client, query: str, status: int, code: str) -> None:
    calibration = stored(client, DIGITS / "calibration.zip")

    answer = client.get(f"/calibrations/{calibration}/preview{query}")

    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_an_unknown_set_has_no_preview(client: httpx.Client) -> None:
    answer = client.get(f"/calibrations/sha256:{'0' * 64}/preview")

    assert (answer.status_code, answer.json()["code"]) == (404, "calibration_not_found")
