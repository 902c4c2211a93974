"""Settings: the only reader of the environment. Each field is described in docs/configuration.md (tested)."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Every setting has a default that works; the environment overrides it as JETFORGE_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="JETFORGE_", frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    data_dir: Path = Field(
        Path("~/.local/share/jetforge"), description="Folder of the database, the artefacts, work folders and logs."
    )
    database_url: str = Field(
        "", description="SQLAlchemy URL of the job database (SQLite); empty: jetforge.db in data_dir."
    )
    allow_anonymous: bool = Field(
        False, description="Listen on an address other than loopback although nobody has to show a key."
    )
    log_level: str = Field("info", description="debug, info, warning or error.")

    max_upload_mib: int = Field(
        4096, ge=1, description="Largest upload (model and calibration of one request together), in MiB."
    )
    url: str = Field("http://127.0.0.1:8000", description="Service that the client verbs talk to.")

    max_body_mib: int = Field(256, ge=1, description="Largest body of any other request, in MiB.")
    max_connections: int = Field(
        4096, ge=1, description="Connections at once; idle ones are closed, the oldest first, to make room."
    )
    stalled_s: float = Field(
        30, gt=0, description="Seconds after which a body that stopped coming, or a silent connection, is given up."
    )
    min_free_mib: int = Field(512, ge=0, description="Uploads and builds are refused when less disk is free, in MiB.")
    max_calibration_entries: int = Field(20_000, ge=1, description="Most files in a calibration archive.")
    max_calibration_mib: int = Field(8192, ge=1, description="Largest unpacked size of a calibration archive, in MiB.")

    min_calibration_samples: int = Field(32, ge=2, description="Usable, different samples that INT8 needs at least.")

    build_timeout_s: float = Field(3600, gt=0, description="Time limit of one build attempt, in seconds.")
    require_confinement: bool = Field(
        False, description="Refuse PyTorch files where the system cannot confine the process that opens them."
    )
    build_attempts: int = Field(3, ge=1, description="Times that a job is started before a lost worker fails it.")
    heartbeat_s: float = Field(5, gt=0, description="Seconds between the heartbeats of a running job.")
    lost_after_s: float = Field(60, gt=0, description="A running job without a heartbeat for so long is requeued.")
    keep_failed_builds: int = Field(5, ge=0, description="Work folders of failed jobs that are kept for a look.")
    cache_mib: int = Field(
        1024, ge=0, description="What builds keep for later ones (calibration ranges, timing caches), in MiB."
    )
    orphan_age_s: float = Field(
        3600, ge=0, description="Age after which an artefact that nothing refers to, or a half-written one, is swept."
    )

    rebuild_stale: bool = Field(True, description="Build a stale engine again, by itself, when it is first asked for.")
    engine_memory_mib: int = Field(
        0, ge=0, description="Memory budget of warm engines, in MiB; 0: half of what is free at the start."
    )
    keep_alive_s: float = Field(
        1800, ge=0, description="Seconds that an unused engine stays warm; 0: until the room is needed."
    )
    pinned: str = Field(
        "", description="Engines that are loaded at the start and stay: name or name:version, separated by commas."
    )
    restore_warm: bool = Field(True, description="Load the engines of the last run again at the start.")
    contexts: int = Field(2, ge=1, le=64, description="Contexts (parallel runs) of each warm engine.")
    batch_rows_max: int = Field(
        32, ge=1, description="Most rows joined into one run, when the build set no max_shapes."
    )
    queue_rows_max: int = Field(256, ge=1, description="Rows that may wait for one engine; more are answered 503.")

    @property
    def root(self) -> Path:
        return self.data_dir.expanduser().absolute()

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.root / 'jetforge.db'}"

    @property
    def artefacts_dir(self) -> Path:
        return self.root / "artefacts"

    @property
    def work_dir(self) -> Path:
        """Work folders of builds, one a job."""
        return self.root / "work"

    @property
    def cache_dir(self) -> Path:
        """What builds keep for later ones; losing it only costs time."""
        return self.root / "cache"

    @property
    def workers_dir(self) -> Path:
        """A locked file for each worker that lives."""
        return self.root / "workers"

    @property
    def warm_file(self) -> Path:
        """Which engines are warm, for the next start."""
        return self.root / "warm.json"

    @property
    def pinned_refs(self) -> tuple[str, ...]:
        return tuple(ref.strip() for ref in self.pinned.split(",") if ref.strip())

    @property
    def logs_dir(self) -> Path:
        return self.root / "logs"

    def job_log(self, job: str) -> Path:
        return self.logs_dir / f"{job}.log"
