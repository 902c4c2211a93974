"""Run by Alembic; `app.storage.migrations.upgrade` calls it with a connection in a write transaction."""

from __future__ import annotations

from alembic import context
from app.storage.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
