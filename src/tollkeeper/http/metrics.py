"""
The metrics, in Prometheus's text format. `METRICS` is the one table of their names, which are API.

They tell of the installation as a whole: no account, key or secret is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from tollkeeper.memory import memory_of

if TYPE_CHECKING:
    from tollkeeper.gate.gate import Gate
    from tollkeeper.http.auth import Throttle
    from tollkeeper.http.observed import Latencies
    from tollkeeper.http.routes.calls import Maintenance
    from tollkeeper.installation import Installation
    from tollkeeper.ledger.committer import Committer
    from tollkeeper.ledger.holds import Holds
    from tollkeeper.ledger.pending import Pending
    from tollkeeper.ledger.relay import Relay
    from tollkeeper.maintenance.backups import Backups
    from tollkeeper.maintenance.retention import Retention
    from tollkeeper.meter.ingest import Ingest

METRICS_MEDIA_TYPE: Final = "text/plain; version=0.0.4"

Sample = tuple[Mapping[str, str], float] | tuple[Mapping[str, str], float, str]
"""Labels and value, of a histogram with the suffix of its name."""


class MetricsSource(NamedTuple):
    """What metrics are read from."""

    gate: Gate
    holds: Holds
    committer: Committer
    ingest: Ingest
    pending: Pending
    relay: Relay
    maintenance: Maintenance
    version: str
    backups: Backups
    retention: Retention
    throttle: Throttle | None = None
    """Of the server that answers; without one there are no failing credentials to tell of."""
    latencies: Latencies | None = None
    """Of the server that answers."""


class Metric(NamedTuple):
    """One metric: *read* returns its samples, none while there is nothing to tell."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    read: Callable[[MetricsSource], Sequence[Sample]]


def _one(read: Callable[[MetricsSource], int]) -> Callable[[MetricsSource], Sequence[Sample]]:
    return lambda source: [({}, read(source))]


def _differences(source: MetricsSource) -> Sequence[Sample]:
    verdict = source.maintenance.verdict
    if verdict is None:
        return []
    return [
        ({"between": "counters"}, len(verdict.differences)),
        ({"between": "usage_store"}, len(verdict.store_differences)),
    ]


def _verified_at(source: MetricsSource) -> Sequence[Sample]:
    at_us = source.maintenance.verified_at_us
    return [({}, at_us // 1_000_000)] if at_us else []


def _backed_up_at(source: MetricsSource) -> Sequence[Sample]:
    at_us = source.backups.last_made_at_us
    return [({}, at_us // 1_000_000)] if at_us else []


def _kept_up_at(source: MetricsSource) -> Sequence[Sample]:
    at_us = source.retention.kept_up_at_us
    return [] if at_us is None else [({}, at_us // 1_000_000)]


def _of_throttle(read: Callable[[Throttle], int]) -> Callable[[MetricsSource], Sequence[Sample]]:
    return lambda source: [] if source.throttle is None else [({}, read(source.throttle))]


def _latencies(source: MetricsSource) -> Sequence[Sample]:
    return [] if source.latencies is None else list(source.latencies.samples())


def _memory(source: MetricsSource) -> Sequence[Sample]:
    memory = memory_of()
    if memory is None:
        return []
    return [({"kind": "private"}, memory.private_bytes), ({"kind": "file_backed"}, memory.file_backed_bytes)]


METRICS: Final = (
    Metric(
        "tollkeeper_admitted_total",
        "counter",
        "Requests admitted since start.",
        lambda s: [({}, s.gate.admitted_count)],
    ),
    Metric(
        "tollkeeper_denied_total",
        "counter",
        "Requests denied since start, by reason.",
        lambda s: [
            ({"reason": reason}, count) for reason, count in sorted(s.holds.denied_count_by_reason.items())
        ],
    ),
    Metric(
        "tollkeeper_settled_total",
        "counter",
        "Requests settled since start.",
        lambda s: [({}, s.committer.settled_count)],
    ),
    Metric(
        "tollkeeper_events_accepted_total",
        "counter",
        "Events that ingest accepted since start.",
        lambda s: [({}, s.ingest.accepted_count)],
    ),
    Metric(
        "tollkeeper_events_duplicate_total",
        "counter",
        "Events that ingest knew already, since start.",
        lambda s: [({}, s.ingest.duplicate_count)],
    ),
    Metric(
        "tollkeeper_events_rejected_total",
        "counter",
        "Events that ingest rejected since start.",
        lambda s: [({}, s.ingest.rejected_count)],
    ),
    Metric(
        "tollkeeper_authentications_failed_total",
        "counter",
        "Failing credentials since start.",
        _of_throttle(lambda throttle: throttle.failed_count),
    ),
    Metric(
        "tollkeeper_authentications_throttled_total",
        "counter",
        "Failing credentials since start that were answered 429, as their address failed too often.",
        _of_throttle(lambda throttle: throttle.throttled_count),
    ),
    Metric(
        "tollkeeper_client_addresses_unknown",
        "gauge",
        "1 when a proxy seems to stand before the server and client_address_header does not say so: see readyz.",
        _of_throttle(lambda throttle: int(bool(throttle.notices))),
    ),
    Metric(
        "tollkeeper_build_info",
        "gauge",
        "Always 1; the version is in its label.",
        lambda s: [({"version": s.version}, 1)],
    ),
    Metric(
        "tollkeeper_commit_groups_total",
        "counter",
        "Groups committed to the ledger since start.",
        _one(lambda s: s.committer.committed_groups),
    ),
    Metric(
        "tollkeeper_commit_works_total",
        "counter",
        "Holds, settlements, batches and changes committed since start.",
        _one(lambda s: s.committer.committed_tasks),
    ),
    Metric(
        "tollkeeper_commit_queue_length",
        "gauge",
        "Works that wait for a commit.",
        _one(lambda s: s.committer.queued),
    ),
    Metric(
        "tollkeeper_denials_unrecorded_total",
        "counter",
        "Denied requests that usage does not show, since too much waited.",
        _one(lambda s: s.holds.denied_unrecorded),
    ),
    Metric(
        "tollkeeper_gate_refusing",
        "gauge",
        "1 while nothing is admitted: the ledger cannot be written, or too much waits for a store.",
        _one(lambda s: int(s.gate.refusing is not None)),
    ),
    Metric(
        "tollkeeper_http_request_seconds",
        "histogram",
        "From the headers of a request to the end of its answer, by call (authorize, settle, void, events, usage, "
        "management, health, preflight, other, or the name of a profile) and class of status.",
        _latencies,
    ),
    Metric(
        "tollkeeper_holds_open",
        "gauge",
        "Holds made over HTTP that have no ending yet.",
        _one(lambda s: s.holds.open_count),
    ),
    Metric(
        "tollkeeper_memory_bytes",
        "gauge",
        "Resident memory: private is this process's alone, file_backed are pages of libraries and other mapped files.",
        _memory,
    ),
    Metric(
        "tollkeeper_outbox_records",
        "gauge",
        "Committed records that the usage store does not have yet.",
        _one(lambda s: s.pending.record_count),
    ),
    Metric(
        "tollkeeper_outbox_age_seconds",
        "gauge",
        "How long ago the oldest of these records was committed.",
        _one(lambda s: s.pending.behind_s()),
    ),
    Metric(
        "tollkeeper_outbox_set_aside_records",
        "gauge",
        "Committed records that cannot be read any more, so that no usage answer contains them: see verify.",
        _one(lambda s: s.relay.set_aside_records),
    ),
    Metric(
        "tollkeeper_relay_delivered_records_total",
        "counter",
        "Records delivered to the usage store since start.",
        _one(lambda s: s.relay.delivered_records),
    ),
    Metric(
        "tollkeeper_relay_failing",
        "gauge",
        "1 while the usage store does not take records.",
        _one(lambda s: int(s.relay.failure is not None)),
    ),
    Metric(
        "tollkeeper_reconcile_differences",
        "gauge",
        "Differences that the last verify over HTTP found.",
        _differences,
    ),
    Metric(
        "tollkeeper_reconcile_timestamp_seconds",
        "gauge",
        "When the last verify over HTTP ended, in seconds since the Unix epoch.",
        _verified_at,
    ),
    Metric(
        "tollkeeper_backup_timestamp_seconds",
        "gauge",
        "The instant that the last complete backup of this process shows, in seconds since the Unix epoch.",
        _backed_up_at,
    ),
    Metric(
        "tollkeeper_expired_records_total",
        "counter",
        "Records that the usage store removed since start, as their retention was over.",
        _one(lambda s: s.retention.expired_records),
    ),
    Metric(
        "tollkeeper_expiry_due_records",
        "gauge",
        "Records whose retention is over and that are not removed yet; looked for once an hour.",
        _one(lambda s: s.retention.due_records),
    ),
    Metric(
        "tollkeeper_expiry_timestamp_seconds",
        "gauge",
        "When no record was due to expire any more last, in seconds since the Unix epoch; without a retention too.",
        _kept_up_at,
    ),
)


def metrics_source(
    installation: Installation,
    maintenance: Maintenance,
    version: str,
    throttle: Throttle | None = None,
    latencies: Latencies | None = None,
) -> MetricsSource:
    """Return what the metrics of *installation* are read from."""
    return MetricsSource(
        installation.gate,
        installation.holds,
        installation.committer,
        installation.ingest,
        installation.pending,
        installation.relay,
        maintenance,
        version,
        installation.backups,
        installation.retention,
        throttle,
        latencies,
    )


def render_metrics(source: MetricsSource) -> str:
    """Return all metrics in Prometheus's text format 0.0.4."""
    lines = []
    for metric in METRICS:
        samples = metric.read(source)
        lines.append(f"# HELP {metric.name} {metric.help}")
        lines.append(f"# TYPE {metric.name} {metric.type}")
        for labels, value, *suffix in samples:
            lines.append(f"{metric.name}{''.join(suffix)}{_labels(labels)} {value}")
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, Any]) -> str:
    if not labels:
        return ""
    shown = ",".join(f'{name}="{_escaped(str(value))}"' for name, value in labels.items())
    return f"{{{shown}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
