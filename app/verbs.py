"""The client's verbs of the command line: build, inspect, jobs, engines, infer, doctor; by the public API only."""

from __future__ import annotations

import argparse
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from rich.console import Console

from app.client import Client, ClientError
from app.console.commands import build, collect_garbage, doctor, engines, infer, inspect, jobs, write
from app.console.hints import typed

if TYPE_CHECKING:  # generic for type checkers only
    Parsers: TypeAlias = argparse._SubParsersAction[ArgumentParser]
Verb: TypeAlias = Callable[[Client, Namespace], int]  # returns the exit code

DEFAULT_URL = "http://127.0.0.1:8000"
INTERRUPTED = 130  # what a shell reports after Ctrl-C


def add_verbs(
    subparsers: Parsers, default_url: str = DEFAULT_URL, default_key: str = "", default_cacert: str = ""
) -> None:
    """Add the verbs' parsers; each sets `func`, which takes the arguments and returns the exit code."""
    common = ArgumentParser(add_help=False)
    common.add_argument("--url", default=default_url, help="address of the service (%(default)s)")
    common.add_argument(
        "--key", default=default_key, help="API key; JETFORGE_KEY keeps it out of the list of processes"
    )
    common.add_argument(
        "--cacert",
        type=Path,
        default=Path(default_cacert) if default_cacert else None,
        metavar="FILE",
        help="certificates to trust for https instead of the system's",
    )
    common.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    for add in (_add_build, _add_inspect, _add_jobs, _add_engines, _add_infer, _add_doctor, _add_gc):
        add(subparsers, common)


def _add_build(subparsers: Parsers, common: ArgumentParser) -> None:
    parser = _parser(subparsers, common, "build", build, "upload a model and build an engine from it")
    parser.add_argument("model", type=Path, metavar="MODEL", help="the network's file, as model.onnx")
    parser.add_argument("--name", required=True, help="of the engine: a-z, 0-9, '.', '_', '-'")
    parser.add_argument("--calibration", type=Path, metavar="ZIP", help="zip of sample images; int8 needs one")
    parser.add_argument(
        "--precision", help="fp32, fp16, int8 or auto (the fastest that stays accurate); left out, fp32"
    )
    parser.add_argument(
        "--preprocess", metavar="JSON|PRESET", help="recipe for images; left out, the input suggests it"
    )
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="class names, one a line, in the order of the output"
    )
    parser.add_argument(
        "--option",
        type=_key_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other build option, as max_shapes=image:8x3x224x224; may be repeated",
    )
    parser.add_argument("--no-wait", action="store_true", help="queue the build and return")


def _add_inspect(subparsers: Parsers, common: ArgumentParser) -> None:
    parser = _parser(subparsers, common, "inspect", inspect, "upload a model and tell what is in it")
    parser.add_argument("model", type=Path, metavar="MODEL", help="the network's file, as model.onnx")


def _add_jobs(subparsers: Parsers, common: ArgumentParser) -> None:
    parser = _parser(subparsers, common, "jobs", jobs, "list build jobs, or look at one")
    _add_paging(parser)
    parser.add_argument("--state", help="only jobs that are queued, running, succeeded, failed or cancelled")
    parser.add_argument("--name", help="only jobs for engines of this name")
    parser.add_argument("job", nargs="?", metavar="JOB_ID")
    _add_acts(parser, watch="follow it to its end", log="print its log", cancel="stop it", retry="queue it again")


def _add_engines(subparsers: Parsers, common: ArgumentParser) -> None:
    parser = _parser(subparsers, common, "engines", engines, "list engines, or look at one")
    _add_paging(parser)
    parser.add_argument("engine", nargs="?", metavar="NAME[:VERSION]")
    _add_acts(parser, load="make it warm", unload="free its memory", delete="delete it")


def _add_infer(subparsers: Parsers, common: ArgumentParser) -> None:
    parser = _parser(subparsers, common, "infer", infer, "run an engine on images")
    parser.add_argument("engine", metavar="NAME[:VERSION]")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--top", type=int, default=1, metavar="N", help="classes to show for each image (%(default)s)")


def _add_doctor(subparsers: Parsers, common: ArgumentParser) -> None:
    _parser(subparsers, common, "doctor", doctor, "show what the device can do, and what is missing")


def _add_gc(subparsers: Parsers, common: ArgumentParser) -> None:
    parser = _parser(subparsers, common, "gc", collect_garbage, "remove what the keep settings no longer keep")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would go")


def _parser(subparsers: Parsers, common: ArgumentParser, name: str, verb: Verb, does: str) -> ArgumentParser:
    parser = subparsers.add_parser(name, parents=[common], help=does, description=does.capitalize() + ".")
    parser.set_defaults(func=_guarded(verb), verb=name, default_url=common.get_default("url"))
    return parser


def _add_paging(parser: ArgumentParser) -> None:
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="lines to show (%(default)s)")
    parser.add_argument("--after", metavar="ID", help="go on where a list ended")


def _add_acts(parser: ArgumentParser, **acts: str) -> None:
    group = parser.add_mutually_exclusive_group()
    for act, does in acts.items():
        group.add_argument(f"--{act}", dest="act", action="store_const", const=act, help=does)


def _key_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _guarded(verb: Verb) -> Callable[[Namespace], int]:
    """The verb with a client, its expected failures told on one screen."""

    def run(args: Namespace) -> int:
        try:
            with Client(args.url, key=args.key, cacert=args.cacert) as client:
                return verb(client, args)
        except KeyboardInterrupt:
            return INTERRUPTED
        except ClientError as error:
            _tell(args, error)
            return 1

    return run


def _tell(args: Namespace, error: ClientError) -> None:
    if args.json:
        problem = {"code": error.code, "detail": error.detail, "hint": error.hint, "status": error.status}
        write(json.dumps({"error": problem}, indent=2, ensure_ascii=False))
        return
    console = Console(stderr=True)
    for text in filter(None, (f"{error.detail} [{error.code}]", typed(error.hint))):
        console.print(text, markup=False, highlight=False, soft_wrap=True)
