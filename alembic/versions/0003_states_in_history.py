"""The history of a job says which state it entered."""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op

revision = "0003"
down_revision = "0002"

_OLD = "seq, job, at, kind, stage, message"


def upgrade() -> None:
    # Made anew and filled, not altered: the table is then declared as in a database that starts with it.
    op.drop_index("ix_job_events_job", "job_events")
    op.rename_table("job_events", "job_events_0001")
    op.create_table(
        "job_events",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("job", sa.Text, sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("stage", sa.Text),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("state", sa.Text),
        sqlite_autoincrement=True,
    )
    op.execute(f"INSERT INTO job_events ({_OLD}) SELECT {_OLD} FROM job_events_0001")  # noqa: S608
    op.drop_table("job_events_0001")
    op.create_index("ix_job_events_job", "job_events", ["job"])
