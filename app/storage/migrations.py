"""The database's tables, brought from one version of this program to another by alembic."""

from __future__ import annotations

from pathlib import Path

from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from alembic import command
from app.domain.errors import DatabaseNewer

MIGRATIONS = Path(__file__).parents[2] / "alembic"


def upgrade(connection: Connection) -> None:
    """Make or change the tables so that they are this version's.

    Raises:
        DatabaseNewer: a newer version of this program has migrated them already.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    unknown = set(MigrationContext.configure(connection).get_current_heads()) - known
    if unknown:
        raise DatabaseNewer(
            f"The job database is at revision {', '.join(sorted(unknown))}, which this version does not know.",
            hint="Start the newer version again, or point data_dir to another folder.",
        )
    command.upgrade(config, "head")
