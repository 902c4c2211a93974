"""Settings: the only reader of the environment. Each field is described in docs/configuration.md (tested)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.domain.errors import InvalidSetting

Level = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(str.lower)]


class ClientSettings(BaseSettings):
    """What the client's verbs read: any text will do, so that no setting of the service keeps them from running."""

    model_config = SettingsConfigDict(env_prefix="JETFORGE_", env_ignore_empty=True, frozen=True, extra="ignore")

    url: str = Field("http://127.0.0.1:8000", description="Service that the client verbs talk to.")
    key: str = Field("", repr=False, description="API key that the client verbs show.")
    cacert: str = Field(
        "", description="File of certificates that the client verbs trust for https; empty: the system's."
    )


class Settings(ClientSettings):
    """Every setting has a default that works; the environment overrides it as JETFORGE_<NAME>."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    grpc_port: int | None = Field(
        None, ge=0, le=65535, description="Port of the gRPC server; 0 takes a free one, empty: there is none."
    )
    data_dir: Path = Field(
        Path("~/.local/share/jetforge"), description="Folder of the database, the artefacts, work folders and logs."
    )
    database_url: str = Field(
        "", description="SQLAlchemy URL of the job database (SQLite); empty: jetforge.db in data_dir."
    )
    allow_anonymous: bool = Field(
        False, description="Nobody has to show a key: not beyond loopback, and not once keys were made."
    )
    device_name: str = Field("", description="Name of this device in GET /status and webhooks; empty: its host name.")
    anonymous_roles: str = Field(
        "", description="Roles of requests without a key once keys were made, as read,infer; empty: none."
    )
    key_attempts_per_min: int = Field(
        10, ge=0, description="Unknown API keys that an address may show each minute; 0: no limit."
    )
    key_requests_per_s: float = Field(
        0, ge=0, description="Requests a second of one API key that has no limit of its own; 0: no limit."
    )
    address_requests_per_s: float = Field(0, ge=0, description="Requests a second of one network address; 0: no limit.")
    max_uploads: int = Field(32, ge=1, description="Uploads that run at once.")
    max_uploads_per_client: int = Field(8, ge=1, description="Uploads of one API key or address that run at once.")
    allowed_hosts: str = Field(
        "",
        description="Names of this service that requests without a key may use, as jetson.example,.lab.example;"
        " * is any. Its addresses, localhost and the machine's own name always may.",
    )
    allowed_origins: str = Field(
        "", description="Pages of other sites that browsers may let in (CORS), as https://fleet.example; * is any."
    )
    trusted_proxies: str = Field(
        "", description="Addresses of reverse proxies whose X-Forwarded-For and -Proto are believed."
    )
    audit_mib: int = Field(16, ge=1, description="Largest size of the audit log, in MiB; its oldest part goes first.")
    tls_cert: str = Field(
        "", description="PEM file of the certificate with its chain: serve https, and gRPC over TLS; empty: neither."
    )
    tls_key: str = Field("", description="PEM file of the certificate's private key; empty: it is in tls_cert.")
    log_level: Level = Field("info", description="debug, info, warning or error.")
    log_format: Literal["text", "json"] = Field(
        "text", description="Log lines for people (text) or for programs (json, one object a line)."
    )
    log_requests: bool = Field(False, description="Write a log line for every answered request.")

    max_upload_mib: int = Field(
        4096, ge=1, description="Largest upload (model and calibration of one request together), in MiB."
    )
    webhook_targets: str = Field(
        "", description="Where webhooks may go: host names (https) or beginnings of URLs, separated by commas."
    )
    webhook_networks: str = Field(
        "", description="Networks that are not public and may be connected to by webhooks all the same, as 10.0.0.0/8."
    )
    webhook_secret: str = Field("", repr=False, description="What webhooks are signed with, 16 characters or more.")
    webhook_url: str = Field("", description="Webhook of jobs that name none.")
    webhook_attempts: int = Field(8, ge=1, description="Times that a webhook is sent before it is given up.")
    webhook_timeout_s: float = Field(10, gt=0, le=60, description="Time limit of sending one webhook, in seconds.")
    event_streams_max: int = Field(100, ge=0, description="Readers of GET /events at a time.")

    max_body_mib: int = Field(256, ge=1, description="Largest body of any other request, in MiB.")
    bodies_mib: int = Field(
        0,
        ge=0,
        description="Memory for the bodies of all inference requests under way, in MiB; more are answered 503. 0: a"
        " quarter of what the system has free at the start.",
    )
    max_header_kib: int = Field(32, ge=1, description="Largest request line and headers together, in KiB.")
    header_timeout_s: float = Field(
        10, gt=0, description="A connection whose request line and headers take longer is ended, in seconds."
    )
    body_timeout_s: float = Field(
        30, gt=0, description="A body that brings less than 4 KiB in so long is ended, as is an unread answer."
    )
    max_connections: int = Field(
        4096, ge=1, description="Connections at once; idle ones are closed, the oldest first, to make room."
    )
    min_free_mib: int = Field(512, ge=0, description="Uploads and builds are refused when less disk is free, in MiB.")
    max_calibration_entries: int = Field(20_000, ge=1, description="Most files in a calibration archive.")
    max_calibration_mib: int = Field(8192, ge=1, description="Largest unpacked size of a calibration archive, in MiB.")

    min_calibration_samples: int = Field(32, ge=2, description="Usable, different samples that INT8 needs at least.")

    build_timeout_s: float = Field(3600, gt=0, description="Time limit of one build attempt, in seconds.")
    require_confinement: bool = Field(
        False, description="Refuse PyTorch files where the system cannot confine the process that opens them."
    )
    inspect_timeout_s: float = Field(60, gt=0, description="Time limit of looking into an uploaded model, in seconds.")
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

    keep_versions: int = Field(
        0, ge=0, description="Versions of an engine's name that are kept; older ones go unless warm. 0: all."
    )
    keep_unused_days: float = Field(
        0, ge=0, description="Days after its upload that a model or archive without an engine or job goes. 0: never."
    )
    keep_jobs_days: float = Field(
        90, ge=0, description="Days after its end that a job goes, with its history and log. 0: never."
    )
    stored_mib_max: int = Field(
        0, ge=0, description="Uploads are refused when all artefacts together have this size, in MiB. 0: no limit."
    )

    rebuild_stale: bool = Field(
        True, description="Build a stale or damaged engine again, by itself, when it is first asked for."
    )
    engine_trial_s: float = Field(
        120, gt=0, description="Time that an uploaded engine has to load and answer, in seconds."
    )
    engine_memory_mib: int = Field(
        0, ge=0, description="Memory budget of warm engines, in MiB; 0: half of what GPU and system have free."
    )
    keep_alive_s: float = Field(
        1800, ge=0, description="Seconds that an unused engine stays warm; 0: until the room is needed."
    )
    contexts: int = Field(
        0, ge=0, le=64, description="Contexts (parallel runs) of each warm engine; 0: what its backend is best with."
    )
    busy_poll_us: int = Field(
        200,
        ge=0,
        le=100_000,
        description="So long the server waits awake for the next request of a lone client that asks again at once, in"
        " microseconds; saves such a client a wake-up. 0: never, which saves power.",
    )
    replicas: int | None = Field(
        None,
        ge=0,
        le=64,
        description="Processes that answer busy connections with copies of small engines; empty: one less than"
        " processors, 3 at most, and none where TensorRT is installed. With TLS, trusted_proxies, log_requests or"
        " limits of requests there are none.",
    )
    pinned: str = Field(
        "", description="Engines that are loaded at the start and stay: name or name:version, separated by commas."
    )
    restore_warm: bool = Field(True, description="Load the engines of the last run again at the start.")
    batch_rows_max: int = Field(
        32, ge=1, description="Most rows joined into one run, when the build set no max_shapes."
    )
    queue_rows_max: int = Field(256, ge=1, description="Rows that may wait for one engine; more are answered 503.")

    @property
    def root(self) -> Path:
        try:
            return self.data_dir.expanduser().absolute()
        except RuntimeError as error:
            raise InvalidSetting(
                f"The data folder is {self.data_dir}, and no home folder is known for the ~.",
                hint="Name it by its whole path: --data-dir or JETFORGE_DATA_DIR.",
            ) from error

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
    def trials_dir(self) -> Path:
        """Where uploaded engines are tried."""
        return self.root / "trials"

    @property
    def cache_dir(self) -> Path:
        """What builds keep for later ones; losing it only costs time."""
        return self.root / "cache"

    @property
    def scratch_dir(self) -> Path:
        """Of the processes that look into uploaded models, while they run."""
        return self.root / "scratch"

    @property
    def workers_dir(self) -> Path:
        """A locked file for each worker that lives."""
        return self.root / "workers"

    @property
    def serve_lock(self) -> Path:
        """Locked by the server: it shares the folder with workers and other verbs, but with no other server."""
        return self.root / "serve.lock"

    @property
    def room_socket(self) -> Path:
        """Where the server answers workers that need memory."""
        return self.root / "room.sock"

    @property
    def audit_dir(self) -> Path:
        return self.root / "audit"

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


def read_settings(flags: Mapping[str, Any]) -> Settings:
    """The settings of the environment, as far as the flags of the command line do not override them.

    Raises:
        InvalidSetting: some have values that they cannot have.
    """
    try:
        return Settings(**flags)
    except ValidationError as error:
        raise InvalidSetting(
            "\n".join(f"{_found(one, flags)}: {one['msg'][0].lower()}{one['msg'][1:]}." for one in error.errors()),
            hint="Change it or leave it out; docs/configuration.md describes every setting.",
        ) from error


def _found(wrong: ErrorDetails, flags: Mapping[str, Any]) -> str:
    """As in `JETFORGE_PORT is 'abc'`."""
    name = str(wrong["loc"][0])
    written = f"--{name.replace('_', '-')}" if name in flags else f"JETFORGE_{name.upper()}"
    return f"{written} is {str(wrong['input'])!r}" if Settings.model_fields[name].repr else written
