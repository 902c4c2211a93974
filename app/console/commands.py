"""What each verb does: ask the service, show the answer.

Results go to standard output, progress to standard error. With --json standard output holds exactly one JSON document.
"""

from __future__ import annotations

import json
import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console

from app.client import Client, ClientError, Json
from app.console import display, display_model
from app.console.hints import typed
from app.console.watch import followed, upload_bar

LOG_LINES = 20  # of a failed build's log
IMAGES_A_REQUEST = 32


def build(client: Client, args: Namespace) -> int:
    """Upload a model, watch its build, show what came out."""
    progress = _progress(args)
    try:
        with upload_bar(progress) as on_upload:
            job = client.build(args.model, args.name, args.calibration, _options(args), on_upload)
    except KeyboardInterrupt:
        progress.print("The upload was stopped.")
        raise
    if args.no_wait:
        _show(args, job, display.job_table(job))
        return 0
    return _watch(client, args, job)


def inspect(client: Client, args: Namespace) -> int:
    """Upload a model and show what is in it; fails when no build of it can succeed."""
    with upload_bar(_progress(args)) as on_upload:
        model = client.inspect(args.model, on_upload)
    _show(args, model, display_model.model_table(model), *display_model.remarks(model))
    return 1 if model["inspection"] == "failed" else 0


def jobs(client: Client, args: Namespace) -> int:
    """List jobs, or show one, its log, its progress, or what became of a request about it."""
    if args.job is None:
        _refuse_act(args, "JOB_ID")
        page = client.jobs(state=args.state, name=args.name, after=args.after, limit=args.limit)
        _show(args, page, display.jobs_table(page["jobs"]), _more(args, page))
        return 0
    if args.act == "log":
        log = client.log(args.job)
        write(json.dumps({"log": log}) if args.json else log.rstrip("\n"))
        return 0
    if args.act == "watch":
        return _watch(client, args, client.job(args.job))
    act = {"cancel": client.cancel, "retry": client.retry}.get(args.act, client.job)
    job = act(args.job)
    _show(args, job, display.job_table(job), *_failure_lines(job))
    return 0


def engines(client: Client, args: Namespace) -> int:
    """List engines, or show one, or have it loaded, unloaded or deleted."""
    if args.engine is None:
        _refuse_act(args, "NAME")
        page = client.engines(after=args.after, limit=args.limit)
        _show(
            args, page, display.engines_table(page["engines"]), display.memory_line(page["memory"]), _more(args, page)
        )
    elif args.act == "delete":
        _show(args, client.delete_engine(args.engine), f"{args.engine} is deleted.")
    elif args.act in ("load", "unload"):
        act = client.load if args.act == "load" else client.unload
        _show(args, act(args.engine), f"{args.engine}: {args.act}ed.")
    else:
        engine = client.engine(args.engine)
        _show(args, engine, display.accuracy_table(engine), display.engine_table(engine), _curl(client, engine))
    return 0


def infer(client: Client, args: Namespace) -> int:
    """Run an engine on images, some in each request, and show what it sees in each."""
    images: list[Path] = args.images
    answers = [
        client.infer(args.engine, images[start : start + IMAGES_A_REQUEST], top=args.top)
        for start in range(0, len(images), IMAGES_A_REQUEST)
    ]
    names = [str(image) for image in images]
    if all("predictions" in answer for answer in answers):
        predictions = [classes for answer in answers for classes in answer["predictions"]]
        together = [{"image": name, "classes": classes} for name, classes in zip(names, predictions, strict=True)]
        document = {"engine": answers[0]["engine"], "predictions": together}
        _show(args, document, display.predictions_table(names, predictions))
    else:
        document = {"engine": answers[0]["engine"], "images": names, "answers": answers}
        _show(args, document, *(display.outputs_table(answer["outputs"]) for answer in answers))
    return 0


def doctor(client: Client, args: Namespace) -> int:
    """Show what the device can do; fails when no backend is ready."""
    device = client.device()
    _show(args, device, display.backends_table(device["backends"]), display.facts_table(device))
    return 0 if any(backend["available"] for backend in device["backends"]) else 1


def collect_garbage(client: Client, args: Namespace) -> int:
    """Remove what has served its time; with --dry-run only tell."""
    found = client.collect_garbage(dry_run=args.dry_run)
    count, mib = len(found["removals"]), found["freed_bytes"] / 2**20
    _show(
        args,
        found,
        *(f"{removal['kind']:<12} {removal['id']}  ({removal['why']})" for removal in found["removals"]),
        f"{count} {'would be removed' if args.dry_run else 'removed'}, {mib:,.1f} MiB.",
    )
    return 0


def _watch(client: Client, args: Namespace, job: Json) -> int:
    progress = _progress(args)
    progress.print(f"job {job['id']}", markup=False, highlight=False)
    try:
        job = followed(client.events(job["id"]), progress)
    except KeyboardInterrupt:
        progress.print(
            f"The build goes on. Watch it: {_command(args, 'jobs', job['id'], '--watch')}\n"
            f"Cancel it: {_command(args, 'jobs', job['id'], '--cancel')}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise
    if job["state"] == "succeeded":
        _show_built(client, args, job)
        return 0
    _show(args, {"job": job}, *_failure_lines(job), *_last_lines(client, job))
    return 1


def _show_built(client: Client, args: Namespace, job: Json) -> None:
    engine = client.engine(job["engine"])
    reused = "Nothing was built: an engine of the same model, options and device existed.\n" if job["reused"] else ""
    _show(
        args,
        {"job": job, "engine": engine},
        display.accuracy_table(engine),
        *([display.candidates_table(engine)] if engine.get("candidates") else []),
        display.engine_table(engine),
        *(f"warning: {warning}" for warning in engine["warnings"] if reused),  # a build has told them as they came
        f"{reused}{_curl(client, engine)}",
    )


def _failure_lines(job: Json) -> list[str]:
    failure = job["failure"]
    if failure is None:
        return [f"The job was cancelled: {job['id']}."] if job["state"] == "cancelled" else []
    return [f"The build failed: {failure['message']} [{failure['code']}]", f"What to do: {typed(failure['hint'])}"]


def _last_lines(client: Client, job: Json) -> list[str]:
    lines = client.log(job["id"]).splitlines()[-LOG_LINES:] if job["state"] == "failed" else []
    return [f"The log's last {len(lines)} lines:", *(f"  {line}" for line in lines)] if lines else []


def _curl(client: Client, engine: Json) -> str:
    """The request to send next, as curl sends it."""
    if engine["preprocess"] is not None:
        body = "--data-binary @image.png -H 'Content-Type: image/png'"
    elif len(engine["signature"]["inputs"]) == 1:
        body = "--data-binary @input.npy -H 'Content-Type: application/x-npy'"
    else:
        body = "--data-binary @inputs.npz -H 'Content-Type: application/x-npz'"
    return f"Infer: curl {body} {client.base_url}/infer/{engine['name']}"


def _refuse_act(args: Namespace, wanted: str) -> None:
    if args.act is not None:
        raise ClientError("usage", f"--{args.act} needs a {wanted}.", f"List them with: jetforge {args.verb}")


def _more(args: Namespace, page: Json) -> str:
    following = page["next"]
    return "" if following is None else f"More: {_command(args, args.verb, '--after', str(following))}"


def _command(args: Namespace, *words: str) -> str:
    url = () if args.url == args.default_url else ("--url", args.url)
    cacert = () if args.cacert is None else ("--cacert", str(args.cacert))
    return shlex.join(("jetforge", *words, *url, *cacert))


def _options(args: Namespace) -> dict[str, str]:
    """Form fields of POST /jobs; what is not given is left to the service."""
    options: dict[str, str] = dict(args.option)
    if args.labels is not None:
        options["labels"] = json.dumps(_lines(args.labels))
    for name in ("precision", "preprocess"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    return options


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ClientError(
            "file_unreadable", f"{path} cannot be read: {error}.", "Give one class name a line."
        ) from error


def _show(args: Namespace, document: Any, *parts: Any) -> None:
    """Print the document, or the parts for a person: tables, and text that is not markup."""
    if args.json:
        write(json.dumps(document, indent=2, ensure_ascii=False))
        return
    console = Console(width=None if sys.stdout.isatty() else 140)
    for part in filter(None, parts):
        console.print(part, markup=False, highlight=False, soft_wrap=isinstance(part, str))


def write(text: str) -> None:
    """Print text for a program, as it is."""
    sys.stdout.write(text + "\n")


def _progress(args: Namespace) -> Console:
    return Console(stderr=True, quiet=args.json)
