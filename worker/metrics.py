"""Prometheus metrics: one registry per app, none made at import, no identifier in a label.

Observers watch and never hurt: nothing here raises into a run.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from schemas.failures import FailureClass
from schemas.status import Gate, Phase, TrainingStatus
from schemas.verdicts import REASONS
from worker import __version__

CAUSES = ("slot", "organization_cap", "base_language_cap", "back_off")
"""Why a run waits: for a free slot (ours to mend), for a cap of its own, or until its next attempt is due."""
OUTCOMES = ("succeeded", "failed", "handed_over", "cancelled", "lost")
"""How an attempt ends, by ``worker.domain.outcome``."""
RENEWALS = ("answered", "late", "unanswered", "lost")
"""``late``: answered, but trainers were paused meanwhile. ``lost``: the run is another attempt's."""

_PHASE_BUCKETS = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14_400, 43_200)
_START_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 1800, 7200)
_MOMENT_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ERROR_RATE_BUCKETS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
_REDUCTION_BUCKETS = (-0.2, -0.05, 0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
_AUDIO_BUCKETS = (60, 300, 900, 1800, 3600, 10_800, 36_000, 108_000, 360_000)


ISOLATED = ("files", "network", "signals")


class Metrics:
    """Every metric of the worker. ``deploy/metrics.md`` lists them; a test compares."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        own = self.registry
        Info("training_worker_build", "Version of this worker", registry=own).info({"version": __version__})

        self._backlog(own)
        self._under_way(own)
        self._ends(own)
        self._data(own)
        self._told(own)
        self._health(own)
        self._show_every_label()

    def _backlog(self, own: CollectorRegistry) -> None:
        """What waits, for what and how long. All workers see the same rows: take the maximum, not the sum."""
        self.waiting = Gauge(
            "training_runs_waiting", "Runs waiting in the database, by what for", ["cause"], registry=own
        )
        self.oldest_waiting_s = Gauge(
            "training_oldest_waiting_seconds", "How long the longest-waiting run has been due", ["cause"], registry=own
        )
        self.organizations_waiting = Gauge(
            "training_organizations_waiting", "Organizations with waiting runs", registry=own
        )
        self.longest_queue = Gauge(
            "training_longest_organization_queue", "Most waiting runs of any one organization", registry=own
        )
        self.running = Gauge("training_runs_running", "Runs running in the database, all workers", registry=own)
        self.expired_leases = Gauge(
            "training_expired_leases", "Running runs whose lease is over and that nobody has rescued yet", registry=own
        )
        self.workers = Gauge("training_workers", "Workers that showed a sign of life within a lease", registry=own)
        self.all_slots = Gauge("training_slots_of_all_workers", "Slots of these workers together", registry=own)
        self.looked_at = Gauge(
            "training_backlog_seen_timestamp_seconds",
            "When this worker last counted what waits in the database",
            registry=own,
        )
        self.start_s = Histogram(
            "training_start_seconds", "Time from accepted to the first claim", buckets=_START_BUCKETS, registry=own
        )

    def _under_way(self, own: CollectorRegistry) -> None:
        """What runs here: in which phase, how far, how stale."""
        self.slots = Gauge("training_slots", "Slots of this worker", registry=own)
        self.slots_used = Gauge("training_slots_used", "Slots in use", registry=own)
        self.devices = Gauge(
            "training_devices", "Devices this worker may use; 0 where they are not limited", registry=own
        )
        self.devices_used = Gauge(
            "training_devices_used", "Of these, devices held by anybody on the host", registry=own
        )
        self.phase = Gauge("training_runs_in_phase", "Runs of this worker by phase", ["phase"], registry=own)
        self.progress = Gauge(
            "training_phase_progress_ratio",
            "How far this worker's runs in a phase are, on average",
            ["phase"],
            registry=own,
        )
        self.longest_eta_s = Gauge(
            "training_longest_eta_seconds", "Longest estimated rest of a phase on this worker", registry=own
        )
        self.stale_s = Gauge("training_oldest_progress_seconds", "Age of the stalest run's last progress", registry=own)
        self.phase_s = Histogram(
            "training_phase_seconds", "Time by phase", ["phase"], buckets=_PHASE_BUCKETS, registry=own
        )
        self.run_s = Histogram(
            "training_run_seconds", "Time from claim to end", ["to"], buckets=_PHASE_BUCKETS, registry=own
        )
        self.audio_s = Counter(
            "training_audio_seconds", "Seconds of audio worked through by training steps", registry=own
        )
        self.checkpoints = Counter("training_checkpoints", "Checkpoints registered", registry=own)
        self.paused_s = Counter(
            "training_trainer_paused_seconds", "Time trainers stood still for want of a lease", registry=own
        )
        self.trainer_cpu_s = Counter("training_trainer_cpu_seconds", "Processor time of ended trainers", registry=own)
        self.dropped_events = Counter(
            "training_trainer_events_dropped", "Trainer events dropped under pressure", registry=own
        )

    def _ends(self, own: CollectorRegistry) -> None:
        """What became of it."""
        self.transitions = Counter("training_transitions", "Transitions made by this worker", ["to"], registry=own)
        self.attempts = Counter(
            "training_attempts_ended", "Attempts that ended here, by outcome", ["outcome"], registry=own
        )
        self.runs_ended = Counter(
            "training_runs_ended",
            "Runs that are over for good, by end and failure class (none where it did not fail)",
            ["end", "failure_class"],
            registry=own,
        )
        self.failures = Counter("training_failures", "Failed attempts by class", ["failure_class"], registry=own)
        self.gates = Counter("training_gates", "Successful runs by the gate's answer", ["gate"], registry=own)
        self.lost_runs = Counter("training_lost_runs", "Runs that another attempt took from this worker", registry=own)
        self.rescued = Counter("training_rescued_runs", "Dead leases this worker rescued", registry=own)
        self.wer = Histogram(
            "training_word_error_rate",
            "Word error rate (fraction) on a run's own test set, before (base) and after (custom);"
            " that of characters where words have no spaces between them",
            ["model"],
            buckets=_ERROR_RATE_BUCKETS,
            registry=own,
        )
        self.reduction = Histogram(
            "training_error_reduction_ratio",
            "Part of the base model's word errors that the custom model no longer makes",
            buckets=_REDUCTION_BUCKETS,
            registry=own,
        )

    def _data(self, own: CollectorRegistry) -> None:
        """The customers' data."""
        self.files = Counter(
            "training_files", "Customers' files of prepared runs, by verdict", ["verdict"], registry=own
        )
        self.rejected_files = Counter(
            "training_rejected_files", "Customers' files and segments refused, by reason", ["reason"], registry=own
        )
        self.usable_audio_s = Histogram(
            "training_usable_audio_seconds", "Usable audio of a prepared run", buckets=_AUDIO_BUCKETS, registry=own
        )

    def _told(self, own: CollectorRegistry) -> None:
        """Messages in and out."""
        self.messages = Counter(
            "training_messages", "Messages taken in, by what became of them", ["verdict"], registry=own
        )
        self.intake_up = Gauge("training_intake_up", "1 while the request queue is consumed", registry=own)
        self.broker_reconnects = Counter(
            "training_broker_reconnects", "Connections to the broker lost or failed", registry=own
        )
        self.outbox_rows = Gauge("training_outbox_rows", "Events not yet confirmed by the broker", registry=own)
        self.outbox_age_s = Gauge("training_outbox_oldest_seconds", "Age of the oldest of them", registry=own)
        self.events_sent = Counter("training_events_sent", "Events the broker confirmed", registry=own)
        self.dead_letters = Gauge("training_dead_letters", "Messages in the dead letter queue", registry=own)

    def _health(self, own: CollectorRegistry) -> None:
        """Whether this process is well."""
        self.isolation = Gauge(
            "training_trainer_isolation",
            "Whether local trainers are kept from others' files, from the network, from signals to others",
            ["kept_from"],
            registry=own,
        )
        self.renewals = Counter("training_lease_renewals", "Lease renewals by result", ["result"], registry=own)
        self.renewal_s = Histogram(
            "training_lease_renewal_seconds", "How long an answered renewal took", buckets=_MOMENT_BUCKETS, registry=own
        )
        self.renewal_age_s = Gauge(
            "training_lease_renewal_age_seconds", "Time since the last answered renewal", registry=own
        )
        self.loop_lag_s = Histogram(
            "training_loop_lag_seconds", "How late the event loop turns", buckets=_MOMENT_BUCKETS, registry=own
        )
        self.database_up = Gauge("training_database_up", "1 while the database answers", registry=own)
        self.scratch_free_bytes = Gauge("training_scratch_free_bytes", "Room left on the scratch disk", registry=own)
        self.scratch_bytes = Gauge("training_scratch_size_bytes", "Size of the scratch disk", registry=own)

    def _show_every_label(self) -> None:
        """A series that is not there cannot be alerted on: begin each closed list at zero."""
        for status in TrainingStatus:
            self.transitions.labels(status.name.lower())
        for failure_class in FailureClass:
            self.failures.labels(failure_class.value)
            if failure_class is not FailureClass.CANCELLED:
                self.runs_ended.labels("failed", failure_class.value)
        self.runs_ended.labels("success", "none")
        self.runs_ended.labels("not_running", "none")
        for gate in Gate:
            self.gates.labels(gate.value)
        for phase in Phase:
            self.phase.labels(phase.value)
            self.progress.labels(phase.value)
            self.phase_s.labels(phase.value)
        for labels, values in (
            (self.waiting, CAUSES),
            (self.oldest_waiting_s, CAUSES),
            (self.attempts, OUTCOMES),
            (self.renewals, RENEWALS),
            (self.messages, ("accepted", "duplicate")),
            (self.files, ("accepted", "rejected")),
            (self.isolation, ISOLATED),
            (self.rejected_files, (*REASONS, "other")),
            (self.wer, ("base", "custom")),
        ):
            for value in values:
                labels.labels(value)

    def run_ended(self, status: TrainingStatus, failure_class: FailureClass) -> None:
        """A run moved: counted where it is over for good.

        Args:
            status: where it stands now.
            failure_class: why it failed; counted only where it did.
        """
        if status.is_terminal:
            failed = status is TrainingStatus.FAILED
            self.runs_ended.labels(status.name.lower(), failure_class.value if failed else "none").inc()

    def data_prepared(self, files: dict[str, int], reasons: dict[str, int], usable_s: float) -> None:
        """What became of a run's data.

        Args:
            files: number of files by verdict.
            reasons: number of files and segments by reason code; unknown codes count as other.
            usable_s: seconds of usable audio.
        """
        for verdict in ("accepted", "rejected"):
            self.files.labels(verdict).inc(files.get(verdict, 0))
        for reason, count in reasons.items():
            self.rejected_files.labels(reason if reason in REASONS else "other").inc(count)
        self.usable_audio_s.observe(usable_s)

    def evaluated(self, wer_base: float, wer_custom: float) -> None:
        """Word error rates of one run on its own test set, as fractions."""
        self.wer.labels("base").observe(wer_base)
        self.wer.labels("custom").observe(wer_custom)
        if wer_base > 0:
            self.reduction.observe((wer_base - wer_custom) / wer_base)
