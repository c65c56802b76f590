-- name: runs_page
-- A model's runs, the newest first.
select r.id, r.custom_model_id, r.status, r.requested_at, r.started_at, r.ended_at, r.attempt, r.phase, r.percent, r.eta_s,
    case when r.status = 3 then extract(epoch from db_now() - r.progress_at)::double precision end as since_progress_s,
    r.cancel_requested_at is not null as cancel_requested, r.failure_class, r.failure_code, r.failure_reason, r.gate
from training_runs r
where r.custom_model_id = $1
order by r.created_at desc, r.id
offset $2 limit $3

-- name: count_runs
-- How many runs a model has had.
select count(*) as n from training_runs where custom_model_id = $1

-- name: run_whole
-- One run of a model for whoever may see the model, whole. Null organization: an operator.
select r.id, r.custom_model_id, r.organization_id, r.status, r.requested_at, r.started_at, r.ended_at, r.attempt, r.phase,
    r.percent, r.eta_s, case when r.status = 3 then extract(epoch from db_now() - r.progress_at)::double precision end as since_progress_s,
    r.cancel_requested_at is not null as cancel_requested, r.failure_class, r.failure_code, r.failure_reason, r.gate,
    r.failures, r.data_report, r.figures, r.live, r.log_address, r.report_address, r.sequence, m.name as model_name,
    m.key as model_key, m.base_language_key
from training_runs r
join custom_models m on m.id = r.custom_model_id
where r.id = $2 and m.id = $1 and m.deleted_at is null and m.organization_id = coalesce($3::bigint, m.organization_id)

-- name: active_run
-- The run that a model is busy with.
select id, status, attempt, inputs is not null as fixed, started_at from training_runs
where custom_model_id = $1 and ended_at is null

-- name: cancel_waiting_run
-- The end of a queued run that somebody cancelled; its organization is locked. The API's own, because settle_runs also
-- writes results, leases and versions, to which the API has no right.
with moved as (
    update training_runs r
    set status = 1, sequence = r.sequence + 1, ended_at = db_now(),
        waited_s = r.waited_s + greatest(0, extract(epoch from db_now() - r.due_at)),
        failure_class = 'cancelled', failure_code = 'cancelled', failure_reason = 'The run was cancelled.'
    where r.id = $1 and r.attempt = $2 and r.status = 2
    returning r.id, r.sequence, r.attempt
), history as (
    insert into run_transitions (id, run_id, sequence, from_status, to_status, attempt, reason_code)
    select $3, m.id, m.sequence, 2, 1, m.attempt, 'cancelled' from moved m
), told as (
    insert into outbox (run_id, sequence, kind) select m.id, m.sequence, 'event' from moved m
)
select id from moved
