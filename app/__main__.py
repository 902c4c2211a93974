"""The command `jetforge`: the service's verbs here, the client's in `verbs`."""

from __future__ import annotations

import argparse
import logging.config
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from app import __version__, key_verbs, logs, verbs, wiring
from app.access import policy
from app.build.process import die_with_parent
from app.domain.errors import InvalidSetting, ServiceError
from app.settings import ClientSettings, Settings, read_settings
from app.storage.backup import Backup

USAGE = 2  # as argparse says it of arguments


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; the result is the exit status."""
    args = _parser().parse_args(arguments)
    try:
        return int(args.func(args))
    except ServiceError as error:
        print(f"jetforge: {error.detail}\n{error.hint}", file=sys.stderr)  # noqa: T201
        return USAGE if isinstance(error, InvalidSetting) else 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jetforge",
        description="Turns uploaded networks into engines on this device, proves them, and serves them warm.",
        epilog="Every setting is an environment variable JETFORGE_<NAME>: docs/configuration.md.",
    )
    parser.add_argument("--version", action="version", version=f"jetforge {__version__}")
    subparsers = parser.add_subparsers(metavar="VERB", required=True)
    serve = _service_verb(subparsers, "serve", "run the service: web server and build worker", _serve)
    serve.add_argument("--host", help="address to listen on (127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (8000); 0 takes a free one")
    serve.add_argument("--grpc-port", type=int, help="port of the gRPC server (none); 0 takes a free one")
    serve.add_argument("--no-worker", action="store_true", help="no build worker; run `jetforge work` beside it")
    work = _service_verb(subparsers, "work", "run a build worker alone", _work)
    work.add_argument("--parent", type=int, metavar="PID", help="stop when this process, which started it, ends")
    _service_verb(subparsers, "migrate", "bring the database to this version, then end", _migrate)
    back_up = _service_verb(
        subparsers, "backup", "write all that the service holds into one file; it may run", _back_up
    )
    back_up.add_argument("file", type=Path, metavar="FILE.tar", help="must not exist yet")
    restore = _service_verb(subparsers, "restore", "fill an empty data folder from a backup", _restore)
    restore.add_argument("file", type=Path, metavar="FILE.tar")
    key_verbs.add_verb(subparsers, _settings)
    defaults = ClientSettings()
    verbs.add_verbs(subparsers, defaults.url, defaults.key, defaults.cacert)
    return parser


def _service_verb(subparsers: Any, name: str, summary: str, func: Any) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = subparsers.add_parser(name, help=summary, description=summary)
    verb.add_argument(
        "--data-dir", type=Path, help="folder of the database and the artefacts (~/.local/share/jetforge)"
    )
    verb.set_defaults(func=func)
    return verb


def _settings(args: argparse.Namespace) -> Settings:
    given = {name: getattr(args, name, None) for name in ("host", "port", "grpc_port", "data_dir")}
    settings = read_settings({name: value for name, value in given.items() if value is not None})
    logging.config.dictConfig(logs.config(settings.log_level, settings.log_format))
    return settings


def _serve(args: argparse.Namespace) -> int:
    from app.server import serve  # the web framework is not needed by the other verbs

    settings = _settings(args)
    with wiring.claimed(settings):  # first: a newer version would change the tables below the one that runs
        wiring.prepare(settings)
        with wiring.connected_keys(settings) as keys:
            policy.refuse_open_door(settings, keys)
        return serve(settings, with_worker=not args.no_worker)


def _work(args: argparse.Namespace) -> int:
    settings = _settings(args)
    if args.parent is not None:
        die_with_parent(args.parent, signal.SIGTERM)
    wiring.prepare(settings)
    with wiring.connected_worker(settings) as worker:

        def stop(number: int, frame: FrameType | None) -> None:
            worker.stop()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        worker.run()
    return 0


def _migrate(args: argparse.Namespace) -> int:
    settings = _settings(args)
    wiring.prepare(settings)
    return 0


def _back_up(args: argparse.Namespace) -> int:
    _say(f"{args.file} holds", wiring.back_up(_settings(args), args.file.absolute()))
    return 0


def _restore(args: argparse.Namespace) -> int:
    settings = _settings(args)
    _say(f"{settings.root} now holds", wiring.restore(settings, args.file))
    return 0


def _say(what: str, found: Backup) -> None:
    words = f"{what} the database, {found.objects} artefacts and {found.logs} logs ({found.size_bytes >> 20} MiB)."
    print(words)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
