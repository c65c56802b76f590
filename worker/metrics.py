"""Prometheus metrics: one registry per app, none made at import, no identifier in a label.

Observers watch and never hurt: nothing here raises into a run.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from schemas.failures import FailureClass
from schemas.status import Gate, Phase, TrainingStatus
from worker import __version__

_PHASE_BUCKETS = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14_400, 43_200)
_DISPATCH_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 1800, 7200)


class Metrics:
    """Every metric of the worker. ``deploy/metrics.md`` lists them; a test compares."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        Info("training_worker_build", "Version of this worker", **own).info({"version": __version__})
        self.messages = Counter("training_messages", "Messages taken in, by what became of them", ["verdict"], **own)
        self.intake_up = Gauge("training_intake_up", "1 while the request queue is consumed", **own)
        self.broker_reconnects = Counter("training_broker_reconnects", "Connections to the broker made again", **own)
        self.transitions = Counter("training_transitions", "Transitions made by this worker", ["to"], **own)
        self.failures = Counter("training_failures", "Failed attempts by class", ["failure_class"], **own)
        self.gates = Counter("training_gates", "Successful runs by the gate's answer", ["gate"], **own)
        self.lost_runs = Counter("training_lost_runs", "Runs that another attempt took from this worker", **own)
        self.rescued = Counter("training_rescued_runs", "Dead leases this worker rescued", **own)
        self.slots = Gauge("training_slots", "Slots of this worker", **own)
        self.slots_used = Gauge("training_slots_used", "Slots in use", **own)
        self.phase = Gauge("training_runs_in_phase", "Runs of this worker by phase", ["phase"], **own)
        self.phase_s = Histogram("training_phase_seconds", "Time by phase", ["phase"], buckets=_PHASE_BUCKETS, **own)
        self.run_s = Histogram("training_run_seconds", "Time from claim to end", ["to"], buckets=_PHASE_BUCKETS, **own)
        self.dispatch_s = Histogram(
            "training_dispatch_seconds", "Time from due to claimed", buckets=_DISPATCH_BUCKETS, **own
        )
        self.audio_s = Counter("training_audio_seconds", "Seconds of audio worked through by trainers", **own)
        self.stale_s = Gauge("training_oldest_progress_seconds", "Age of the stalest run's last progress", **own)
        self.wer = Histogram(
            "training_word_error_rate",
            "Word error rate of finished runs on their own test sets",
            ["model"],
            buckets=(0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0),
            **own,
        )
        self.renewals = Counter("training_lease_renewals", "Lease renewals by result", ["result"], **own)
        self.renewal_age_s = Gauge("training_lease_renewal_age_seconds", "Time since the last answered renewal", **own)
        self.loop_lag_s = Gauge("training_loop_lag_seconds", "How late the event loop was at its last turn", **own)
        self.database_up = Gauge("training_database_up", "1 while the database answers", **own)
        self.waiting = Gauge("training_runs_waiting", "Runs waiting in the database, all organizations", **own)
        self.running = Gauge("training_runs_running", "Runs running in the database, all workers", **own)
        self.organizations_waiting = Gauge("training_organizations_waiting", "Organizations with waiting runs", **own)
        self.oldest_waiting_s = Gauge("training_oldest_waiting_seconds", "How long the oldest due run has waited", **own)
        self.outbox_rows = Gauge("training_outbox_rows", "Events not yet confirmed by the broker", **own)
        self.outbox_age_s = Gauge("training_outbox_oldest_seconds", "Age of the oldest of them", **own)
        self.events_sent = Counter("training_events_sent", "Events the broker confirmed", **own)
        self.dead_letters = Gauge("training_dead_letters", "Messages in the dead letter queue", **own)
        self.dropped_events = Counter("training_trainer_events_dropped", "Trainer events dropped under pressure", **own)
        self.rejected_files = Counter("training_rejected_files", "Customers' files refused, by reason", ["reason"], **own)
        self._show_every_label()

    def _show_every_label(self) -> None:
        """A series that is not there cannot be alerted on: begin each closed list at zero."""
        for status in TrainingStatus:
            self.transitions.labels(status.name.lower())
        for failure_class in FailureClass:
            self.failures.labels(failure_class.value)
        for gate in Gate:
            self.gates.labels(gate.value)
        for phase in Phase:
            self.phase.labels(phase.value)
        for result in ("answered", "unanswered", "lost"):
            self.renewals.labels(result)
