"""A client of the jetforge service, for the command line and for scripts of your own. It needs httpx only.

from pathlib import Path
from app.client import Client

with Client("http://127.0.0.1:8000") as client:
    job = client.build(Path("digits.onnx"), "digits")
    for event in client.events(job["id"]):
        print(event.kind, event.data)
    print(client.infer("digits", [Path("seven.png")])["predictions"])
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias
from urllib.parse import quote

import httpx

from app.client_errors import ClientError, Json, credentials, invalid_address, json_of, reachable, refusal, trusted
from app.sse import Event, EventReader

OnUpload: TypeAlias = Callable[[int, int], None]  # bytes sent so far, bytes in all

__all__ = ["FINAL_STATES", "Client", "ClientError", "Json", "OnUpload"]

FINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})


class Client:
    """Calls the service at `base_url`. Every method raises ClientError when the answer is not a success.

    Proxies of the environment are not used: the service is a device at hand, most often this one.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        timeout_s: float = 300,
        *,
        key: str = "",
        cacert: Path | None = None,
    ) -> None:
        """Connect on first use.

        Args:
            base_url: where the service listens.
            timeout_s: longest silence while an answer is awaited. A cold engine loads before its first answer.
            key: API key to show; "" shows none.
            cacert: certificates to trust for https instead of the system's.

        Raises:
            ClientError: the address is not an http or https address, the key cannot be sent, or the certificates
                cannot be read.
        """
        self.base_url = base_url.rstrip("/")
        self._timeout_s = timeout_s
        try:
            scheme = httpx.URL(self.base_url).scheme
        except httpx.InvalidURL as error:
            raise invalid_address(self.base_url) from error
        if scheme not in ("http", "https"):
            raise invalid_address(self.base_url)
        self._http = httpx.Client(
            base_url=self.base_url,
            timeout=httpx.Timeout(timeout_s, connect=10.0),
            headers=credentials(key),
            verify=trusted(cacert) if cacert is not None else True,
            trust_env=False,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def build(
        self,
        model: Path,
        name: str,
        calibration: Path | None = None,
        options: Mapping[str, str] | None = None,
        on_upload: OnUpload | None = None,
        idempotency_key: str | None = None,
    ) -> Json:
        """Upload a model and queue its build. The files are streamed: memory does not grow with their size.

        Args:
            options: form fields of POST /jobs, such as precision or input_shapes.
            on_upload: called as bytes leave.
            idempotency_key: a second build with the same key is answered with the first one's job.

        Returns:
            The job, as GET /jobs/{id} answers it.
        """
        fields = {**(options or {}), "name": name}
        uploads = {"model": model} if calibration is None else {"model": model, "calibration": calibration}
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        return self._upload("/jobs", uploads, fields, headers, on_upload)

    def inspect(self, model: Path, on_upload: OnUpload | None = None) -> Json:
        """Upload a model and have it looked into: `facts`, or the `failure` that a build would meet."""
        return self._upload("/models", {"model": model}, {}, {}, on_upload)

    def job(self, job_id: str, wait_s: float = 0) -> Json:
        """The job; with `wait_s`, its next change is awaited for so long."""
        params = {"wait": wait_s} if wait_s else {}
        timeout = httpx.Timeout(self._timeout_s + wait_s, connect=10.0)
        return self._call("GET", f"/jobs/{quote(job_id, safe='')}", params=params, timeout=timeout)

    def jobs(
        self, state: str | None = None, name: str | None = None, after: str | None = None, limit: int | None = None
    ) -> Json:
        """A page of jobs, newest first: `jobs`, and `next`: the following page's `after`, or None."""
        return self._call("GET", "/jobs", params=_given(state=state, name=name, after=after, limit=limit))

    def events(self, job_id: str, patience_s: float = 60) -> Iterator[Event]:
        """What happens to the job, from its beginning to its end; the last event is `end`, with the job.

        A stream that breaks is opened again; in between, the job is asked for.

        Args:
            patience_s: how long the service may be out of reach, as while it restarts, before that is an error.
        """
        reader = EventReader()
        reached = time.monotonic()
        while True:
            try:
                for event in self._stream(job_id, reader):
                    reached = time.monotonic()
                    yield event
                    if event.kind == "end":
                        return
                job = self.job(job_id, wait_s=5)
                reached = time.monotonic()
                ended = job["state"] in FINAL_STATES
                yield Event("end" if ended else "job", job)
                if ended:
                    return
            except ClientError as error:
                if not error.is_outage or time.monotonic() - reached > patience_s:
                    raise
            time.sleep(0.5)

    def log(self, job_id: str) -> str:
        """The build's log so far, as text."""
        return self._request("GET", f"/jobs/{quote(job_id, safe='')}/log").text

    def cancel(self, job_id: str) -> Json:
        return self._call("DELETE", f"/jobs/{quote(job_id, safe='')}")

    def retry(self, job_id: str) -> Json:
        return self._call("POST", f"/jobs/{quote(job_id, safe='')}/retry")

    def engines(self, after: str | None = None, limit: int | None = None) -> Json:
        """A page of engines: `engines`, `next`, and `memory` of those that are warm."""
        return self._call("GET", "/engines", params=_given(after=after, limit=limit))

    def engine(self, ref: str) -> Json:
        """The engine `name:version`, or the newest version of `name`."""
        return self._call("GET", f"/engines/{quote(ref, safe=':')}")

    def load(self, ref: str) -> Json:
        return self._call("POST", f"/engines/{quote(ref, safe=':')}/load")

    def unload(self, ref: str) -> Json:
        return self._call("POST", f"/engines/{quote(ref, safe=':')}/unload")

    def delete_engine(self, ref: str) -> Json:
        return self._call("DELETE", f"/engines/{quote(ref, safe=':')}")

    def infer(self, ref: str, images: Sequence[Path], top: int = 5) -> Json:
        """Run the engine on images; they share one request, so mind the service's limits for thousands.

        Returns:
            `engine`, `timings_ms`, and for a classifier `predictions`: per image the `top` likeliest classes with
            index, label, score and probability; else `outputs` by name.
        """
        with ExitStack() as opened:
            files = [
                ("image", (path.name, opened.enter_context(_opened(path, "Name the images in it.")).read()))
                for path in images
            ]
        return self._call("POST", f"/infer/{quote(ref, safe=':')}", params={"top": top}, files=files)

    def device(self) -> Json:
        """Backends with what is missing for each, the device, its memory and disk, versions."""
        return self._call("GET", "/device")

    def collect_garbage(self, *, dry_run: bool) -> Json:
        """Remove what has served its time, or tell what would go: `removals` and `freed_bytes`."""
        return self._call("POST", "/gc", params={"dry_run": dry_run})

    def _upload(
        self,
        where: str,
        uploads: Mapping[str, Path],
        fields: Mapping[str, str],
        headers: Mapping[str, str],
        on_upload: OnUpload | None,
    ) -> Json:
        with ExitStack() as opened:
            files = {field: (path.name, opened.enter_context(_opened(path))) for field, path in uploads.items()}
            form = self._http.build_request("POST", where, data=fields, files=files, headers=headers)
            total = int(form.headers["Content-Length"])
            assert isinstance(form.stream, httpx.SyncByteStream)
            body = _counted(form.stream, total, on_upload)
            return json_of(self._send(self._http.build_request("POST", where, content=body, headers=form.headers)))

    def _call(self, method: str, path: str, **kwargs: Any) -> Json:
        return json_of(self._request(method, path, **kwargs))

    def _request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        return self._send(self._http.build_request(method, path, **kwargs))

    def _send(self, request: httpx.Request) -> httpx.Response:
        with reachable(self.base_url):
            response = self._http.send(request)
        if not response.is_success:
            raise refusal(response)
        return response

    def _stream(self, job_id: str, reader: EventReader) -> Iterator[Event]:
        """The events of one connection; ends quietly when there is none or when it breaks."""
        path = f"/jobs/{quote(job_id, safe='')}/events"
        timeout = httpx.Timeout(60.0, connect=10.0)  # a silent stream may be a dead one: the job is asked for instead
        try:
            with self._http.stream("GET", path, timeout=timeout) as response:
                if response.is_success:
                    yield from reader.new_events(response.iter_bytes())
                elif response.status_code < 500:
                    response.read()
                    raise refusal(response)
        except httpx.TransportError:
            return


def _counted(stream: Iterable[bytes], total: int, on_upload: OnUpload | None) -> Iterator[bytes]:
    sent = 0
    for chunk in stream:
        yield chunk
        sent += len(chunk)
        if on_upload is not None:
            on_upload(sent, total)


def _given(**params: str | int | None) -> dict[str, str | int]:
    return {name: value for name, value in params.items() if value is not None}


def _opened(path: Path, folder_hint: str | None = None) -> BinaryIO:
    try:
        return path.open("rb")
    except IsADirectoryError as error:
        zipping = shlex.join(("python3", "-m", "zipfile", "-c", f"{path.resolve().name}.zip", str(path)))
        raise ClientError(
            "file_unreadable", f"{path} is a folder; a file is wanted.", folder_hint or f"Zip it: {zipping}"
        ) from error
    except OSError as error:
        raise ClientError("file_unreadable", f"{path} cannot be read: {error.strerror}.", "Check its name.") from error
