"""Engines that were uploaded have no model; damaged ones say since when. SQLite cannot change a column in place."""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op

revision = "0002"
down_revision = "0001"

_KEPT = "seq, name, version, key, blob, model, calibration, options, built, created_at"


def upgrade() -> None:
    for column in ("name_version", "name", "key", "model", "calibration"):
        op.drop_index(f"ix_engines_{column}", "engines")
    op.rename_table("engines", "engines_before")
    _engines()
    op.execute(f"INSERT INTO engines ({_KEPT}) SELECT {_KEPT} FROM engines_before")  # noqa: S608, no value is in it
    op.execute("DELETE FROM sqlite_sequence WHERE name = 'engines'")
    op.execute("UPDATE sqlite_sequence SET name = 'engines' WHERE name = 'engines_before'")
    op.drop_table("engines_before")


def _engines() -> None:
    op.create_table(
        "engines",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("blob", sa.Text, nullable=False),
        sa.Column("model", sa.Text, sa.ForeignKey("models.digest")),
        sa.Column("calibration", sa.Text, sa.ForeignKey("calibrations.digest")),
        sa.Column("options", sa.Text, nullable=False),
        sa.Column("built", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("damaged_at", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_engines_name_version", "engines", ["name", "version"], unique=True)
    for column in ("name", "key", "model", "calibration"):
        op.create_index(f"ix_engines_{column}", "engines", [column])
