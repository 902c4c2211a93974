"""What the service counts and measures, as Prometheus families. docs/metrics.md lists every one (tested)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from app import __version__
from app.api.build_counts import BuildCounts
from app.api.observed import RequestCounts
from app.domain.jobs import JobState
from app.serving.distribution import Distribution
from app.serving.pool_events import PoolEvents
from app.serving.seats import EngineState, WarmState
from app.serving.statistics import Totals

Labelled = Iterable[tuple[Sequence[str], float]]  # label values, value
Spread = Iterable[tuple[Sequence[str], Distribution]]


@dataclass(frozen=True)
class Measured:
    """What has to be read or asked for at the time of a scrape."""

    states: Sequence[WarmState]
    used_bytes: int
    budget_bytes: int
    jobs: Mapping[JobState, int]
    workers: int
    streams: int  # open event streams of all jobs
    body_used_bytes: int
    body_limit_bytes: float
    disk_total_bytes: int
    disk_free_bytes: int
    artefact_bytes: int
    memory_total_bytes: int
    memory_available_bytes: int
    temperatures_c: Mapping[str, float]


def families(
    measured: Measured,
    requests: RequestCounts,
    inference: Sequence[tuple[str, Totals]],
    pool: PoolEvents,
    builds: BuildCounts,
) -> Iterator[Metric]:
    yield _gauge("jetforge_info", "Always 1; the version is a label.", ["version"], [([__version__], 1)])
    yield from _of_requests(requests, measured)
    yield from _of_inference(inference, measured.states)
    yield from _of_the_pool(measured, pool)
    yield from _of_builds(measured, builds)
    yield from _of_the_device(measured)


def by_engine(states: Sequence[WarmState], figure: Callable[[WarmState], int]) -> list[tuple[Sequence[str], int]]:
    """The figure of each engine, by the first name that it was used under.

    An engine that drains while it loads anew is there twice and counts as one: a page may not hold a sample twice.
    """
    found: dict[str, int] = {}
    for state in states:
        if state.refs:
            found[state.refs[0]] = found.get(state.refs[0], 0) + figure(state)
    return [((ref,), value) for ref, value in found.items()]


def _of_requests(requests: RequestCounts, measured: Measured) -> Iterator[Metric]:
    answered = [((route, method, str(status)), n) for (route, method, status), n in list(requests.answered.items())]
    yield _counter("jetforge_http_requests", "Answered requests.", ["route", "method", "status"], answered)
    taken = [((route,), spread) for route, spread in list(requests.seconds.items())]
    yield _histogram("jetforge_http_request_seconds", "From a request to the end of its answer.", ["route"], taken)
    yield _gauge("jetforge_replicas", "Processes that answer beside this one.", [], [((), requests.replicas)])
    connections = [((), requests.replica_connections)]
    yield _gauge("jetforge_replica_connections", "Connections that they have.", [], connections)
    about = "Bodies of inference requests under way."
    yield _gauge("jetforge_body_memory_used_bytes", about, [], [((), measured.body_used_bytes)])
    yield _gauge("jetforge_body_memory_limit_bytes", "What they may have.", [], [((), measured.body_limit_bytes)])


def _of_inference(inference: Sequence[tuple[str, Totals]], states: Sequence[WarmState]) -> Iterator[Metric]:
    results = [
        pair
        for ref, totals in inference
        for pair in (((ref, "success"), totals.requests), ((ref, "failure"), totals.failures))
    ]
    yield _counter("jetforge_inference_requests", "Inference requests by result.", ["engine", "result"], results)
    rows, runs = ([((ref,), count) for ref, count in pairs] for pairs in _rows_and_runs(inference))
    yield _counter("jetforge_inference_rows", "Answered rows.", ["engine"], rows)
    yield _counter("jetforge_inference_runs", "Runs; one answers one request or several.", ["engine"], runs)
    whole = [((ref,), totals.seconds) for ref, totals in inference]
    yield _histogram("jetforge_inference_seconds", "Answered requests, whatever the protocol.", ["engine"], whole)
    stages = [((ref, stage), spread) for ref, totals in inference for stage, spread in totals.stage_seconds.items()]
    about = "Stages of answered requests: decode, preprocess, queue, compute, encode."
    yield _histogram("jetforge_inference_stage_seconds", about, ["engine", "stage"], stages)
    lengths = [((ref,), totals.run_rows) for ref, totals in inference]
    yield _histogram("jetforge_inference_batch_rows", "Rows of a run.", ["engine"], lengths)
    waiting = by_engine(states, lambda state: state.waiting)
    yield _gauge("jetforge_inference_queue_rows", "Rows that wait for a run.", ["engine"], waiting)
    leases = by_engine(states, lambda state: state.leases)
    yield _gauge("jetforge_inference_requests_in_progress", "Requests that use or await it.", ["engine"], leases)


def _rows_and_runs(inference: Sequence[tuple[str, Totals]]) -> Iterator[list[tuple[str, int]]]:
    yield [(ref, totals.rows) for ref, totals in inference]
    yield [(ref, totals.runs) for ref, totals in inference]


def _of_the_pool(measured: Measured, pool: PoolEvents) -> Iterator[Metric]:
    counts = [((kind.value,), sum(state.state is kind for state in measured.states)) for kind in EngineState]
    yield _gauge("jetforge_engines", "Engines in memory by state.", ["state"], counts)
    sizes = by_engine(measured.states, lambda state: state.device_bytes)
    yield _gauge("jetforge_engine_device_bytes", "Memory of an engine.", ["engine"], sizes)
    yield _gauge("jetforge_engine_memory_used_bytes", "Memory of all engines.", [], [((), measured.used_bytes)])
    yield _gauge("jetforge_engine_memory_budget_bytes", "What they may have.", [], [((), measured.budget_bytes)])
    yield _histogram("jetforge_engine_load_seconds", "Loads, warm-up included.", [], [((), pool.load_seconds)])
    yield _counter("jetforge_engine_load_failures", "Loads that failed.", [], [((), pool.load_failures)])
    yield _counter("jetforge_engine_unloads", "Engines that left memory.", [], [((), pool.unloads)])
    about = "Engines that had to leave for another, or for want of use."
    yield _counter("jetforge_engine_evictions", about, [], [((), pool.evictions)])


def _of_builds(measured: Measured, builds: BuildCounts) -> Iterator[Metric]:
    jobs = [((state.value,), count) for state, count in measured.jobs.items()]
    yield _gauge("jetforge_jobs", "Jobs by state.", ["state"], jobs)
    ended = [((state.value,), count) for state, count in builds.ended.items()]
    yield _counter("jetforge_builds", "Jobs that ended, by result.", ["result"], ended)
    stages = [((stage.value,), spread) for stage, spread in builds.stage_seconds.items()]
    yield _histogram("jetforge_build_stage_seconds", "Stages of builds.", ["stage"], stages)
    yield _gauge("jetforge_workers", "Build workers alive.", [], [((), measured.workers)])
    yield _gauge("jetforge_event_streams", "Open streams of GET /events.", [], [((), measured.streams)])


def _of_the_device(measured: Measured) -> Iterator[Metric]:
    single = (
        ("jetforge_disk_total_bytes", "File system of the data folder.", measured.disk_total_bytes),
        ("jetforge_disk_free_bytes", "What is free of it.", measured.disk_free_bytes),
        ("jetforge_artefact_bytes", "Stored models, calibration sets and engines.", measured.artefact_bytes),
        ("jetforge_memory_total_bytes", "Memory of the device.", measured.memory_total_bytes),
        ("jetforge_memory_available_bytes", "What programs may still take.", measured.memory_available_bytes),
    )
    for name, about, value in single:
        yield _gauge(name, about, [], [((), value)])
    zones = [((zone,), celsius) for zone, celsius in measured.temperatures_c.items()]
    yield _gauge("jetforge_temperature_celsius", "Temperatures by the kernel's zone.", ["zone"], zones)


def _gauge(name: str, about: str, labels: Sequence[str], samples: Labelled) -> Metric:
    family = GaugeMetricFamily(name, about, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _counter(name: str, about: str, labels: Sequence[str], samples: Labelled) -> Metric:
    """Its samples are named `<name>_total`."""
    family = CounterMetricFamily(name, about, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _histogram(name: str, about: str, labels: Sequence[str], samples: Spread) -> Metric:
    family = HistogramMetricFamily(name, about, labels=labels)
    for values, spread in samples:
        family.add_metric(values, spread.cumulative(), spread.total)
    return family
