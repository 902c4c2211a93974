"""One command that says whether a device does what jetforge promises, and how fast.

Builds three networks in every precision that the device has, compares every engine with the network it came from,
measures it through the engine and through HTTP, warm and cold, and writes a report to send back.

Exit status: 0 all checks passed, 1 some did not, 2 nothing could be measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from acceptance import report
from acceptance.figures import Figures, known_figures, shortfalls
from acceptance.result import Result
from acceptance.service import ROOT, NotStarted, Running, started
from acceptance.trial import Effort, Order, Trial
from networks_for_acceptance import NETWORKS

from app.client import Client, ClientError, Json

PRECISIONS = ("fp32", "fp16", "int8")
QUICK = Effort(pictures=40, compared=8, runs=100, budget_s=5, cycles=4, build_timeout_s=600)
FULL = Effort(pictures=160, compared=24, runs=500, budget_s=20, cycles=20, build_timeout_s=1800)


class Impossible(Exception):
    """Nothing can be measured; the message says why."""


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        with _service(args.url) as (running, folder), Client(running.url) as client:
            return _accepted(args, running, client, folder)
    except (NotStarted, Impossible, ClientError) as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="device-acceptance", description=__doc__.split("\n\n")[0])
    parser.add_argument("--url", help="a service that runs already; left out, one is started on a free loopback port")
    parser.add_argument("--backend", default="auto", help="left out, the best that the device has")
    parser.add_argument("--network", action="append", choices=NETWORKS, help="only this one; may be repeated")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="only this one; may be repeated")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=_option,
        metavar="NAME=VALUE",
        help="a build option of every engine, as tactic_sources= or workspace_mib=1024; may be repeated",
    )
    parser.add_argument("--quick", action="store_true", help="one network in one precision, fewer runs")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "gpu.md", help="page with earlier figures")
    parser.add_argument("--output", type=Path, default=ROOT / "data" / "acceptance", help="folder of the report")
    return parser


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


@contextmanager
def _service(url: str | None) -> Iterator[tuple[Running, Path]]:
    """The service to ask, and a folder that vanishes in the end."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jetforge-acceptance-")))
        running = Running(url.rstrip("/"), None) if url else stack.enter_context(started(folder / "data"))
        yield running, folder


def _accepted(args: argparse.Namespace, running: Running, client: Client, folder: Path) -> int:
    device = client.device()
    backend = _backend(device, args.backend)
    known = known_figures(args.figures, backend["facts"]["device"], backend["name"])
    orders = _orders(args, backend)
    trial = Trial(running, client, folder, QUICK if args.quick else FULL)
    results = []
    for index, order in enumerate(orders, start=1):
        _tell(f"{index}/{len(orders)} {order.name} …")
        start = time.monotonic()
        results.append(_compared(trial.tried(order), known))
        _tell(f"{'passed' if results[-1].passed else 'FAILED'} after {time.monotonic() - start:.0f} s")
    asked = {"quick": args.quick, "options": dict(args.option)}
    document = report.as_document(results, device, backend["name"], asked, _told(known, results, args.figures))
    files = report.write(document, results, args.output)
    print(report.markdown(document, results))
    _tell(f"Send back: {' and '.join(map(str, files))}")
    return 0 if document["passed"] else 1


def _backend(device: Json, name: str) -> Json:
    """What GET /device says of the backend.

    Raises:
        Impossible: there is none of that name, or it does not work here.
    """
    found: list[Json] = [entry for entry in device["backends"] if name in ("auto", entry["name"])]
    working = [entry for entry in found if entry["available"]]
    if not working:
        why = " ".join(f"{entry['missing']} {entry['hint']}" for entry in found)
        raise Impossible(f"The backend {name} does not work on this device. {why}".strip())
    return working[0]


def _orders(args: argparse.Namespace, backend: Json) -> list[Order]:
    networks = args.network or (["resnet18"] if args.quick else list(NETWORKS))
    offered = [precision for precision in PRECISIONS if precision in backend["precisions"]]
    quick = "fp16" if backend["name"] == "tensorrt" else "fp32"
    precisions = args.precision or ([quick] if args.quick else offered)
    missing = [precision for precision in precisions if precision not in offered]
    if missing:
        raise Impossible(f"The backend {backend['name']} has no {', '.join(missing)} here, only {', '.join(offered)}.")
    options = dict(args.option)
    orders = [
        Order(NETWORKS[name], precision, backend["name"], options) for name in networks for precision in precisions
    ]
    try:
        _ = [order.tolerance for order in orders]
    except (ValueError, TypeError) as error:
        raise Impossible(f"The option tolerance is not an object of its fields: {error}.") from error
    return orders


def _compared(result: Result, known: Figures) -> Result:
    """The result, checked against what this device did before; as it is when it never did."""
    if result.figures and result.name in known:
        problems = shortfalls(result.figures, known[result.name])
        result.judge("keeps up with earlier figures", problems, "none is worse than it may be")
    return result


def _told(known: Figures, results: list[Result], page: Path) -> str:
    compared = [result.name for result in results if result.name in known]
    if not compared:
        return f"nothing to compare with: {page.name} has none of this device"
    return f"compared with {page.name}: {', '.join(compared)}"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
