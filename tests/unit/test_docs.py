"""Documentation is complete: every error, setting and option is described."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.api import error_page
from app.api.options import OptionsSchema
from app.domain import errors
from app.domain.preprocess import PRESETS, Preprocess
from app.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CLIENT = {
    code
    for file in [*ROOT.glob("app/client*.py"), ROOT / "app" / "verbs.py", *ROOT.glob("app/console/*.py")]
    for code in re.findall(r'ClientError\(\s*"(\w+)"', file.read_text())
}
FAMILIES = {
    errors.InvalidInput,
    errors.NotFound,
    errors.Conflict,
    errors.TooLarge,
    errors.Unsupported,
    errors.Unavailable,
    errors.RunFailed,
    errors.BuildFailed,
    errors.Unauthorised,
    errors.Forbidden,
    errors.TooMany,
}
BY_OTHERS = {"internal_error", "method_not_allowed", "range_not_satisfiable", "http_error", *CLIENT}


def leaves(kind: type[errors.ServiceError] = errors.ServiceError) -> Iterator[type[errors.ServiceError]]:
    for child in kind.__subclasses__():
        if child not in FAMILIES:
            yield child
        yield from leaves(child)


def test_every_error_has_a_code_of_its_own_and_a_title() -> None:
    codes = [leaf.code for leaf in leaves()]

    assert len(codes) == len(set(codes)) > 40
    assert all("code" in vars(leaf) and "title" in vars(leaf) for leaf in leaves())


@pytest.mark.parametrize("code", [*(leaf.code for leaf in leaves()), *sorted(BY_OTHERS - {"http_error"})])
def test_every_error_has_a_paragraph(code: str) -> None:
    text = (DOCS / "errors.md").read_text()
    found = re.search(rf"^### {code}\n\n(.+?)(?=\n#|\Z)", text, re.M | re.S)

    assert found is not None and len(found.group(1).strip()) > 40


def test_the_type_of_every_problem_is_an_anchor_of_the_page_that_is_served() -> None:
    page = error_page.page_of((DOCS / "errors.md").read_text())

    anchors = re.findall(r'<h3 id="([a-z0-9_]+)">', page)
    assert set(anchors) >= {leaf.code for leaf in leaves()} | BY_OTHERS
    assert "<code>POST /jobs</code>" in page and "<pre><code>{&quot;type&quot;:" in page
    assert [line for line in page.splitlines() if "`" in line or line.startswith("#") or "](" in line] == []


def test_no_error_is_described_that_does_not_exist() -> None:
    described = set(re.findall(r"^### (\w+)$", (DOCS / "errors.md").read_text(), re.M))

    assert described == {leaf.code for leaf in leaves()} | BY_OTHERS


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_described_with_its_default(name: str) -> None:
    row = re.search(
        rf"^\| `JETFORGE_{name.upper()}` \| (.+?) \| (.+?) \|$", (DOCS / "configuration.md").read_text(), re.M
    )
    default = Settings.model_fields[name].default

    assert row is not None
    assert row.group(1) == (
        f"`{str(default).lower() if default in (True, False) else default}`" if default not in ("", None) else "(empty)"
    )
    assert row.group(2) == Settings.model_fields[name].description


def test_every_build_option_and_recipe_field_is_described() -> None:
    text = (DOCS / "options.md").read_text()
    names = [*OptionsSchema.model_fields, *(field.name for field in dataclasses.fields(Preprocess)), *PRESETS]

    assert [name for name in names if f"`{name}`" not in text and name != "dtype"] == []
