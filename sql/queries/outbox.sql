-- name: lock_unsent
-- Runs with something to tell, each by its oldest unsent row, locked so that two relays never hold the same run.
-- Everything else the run has to tell comes with it, in order.
with head as materialized (
    select o.id, o.run_id
    from outbox o
    where not exists (
            select from outbox e where e.run_id = o.run_id and (e.sequence, e.id) < (o.sequence, o.id) offset 0)
        and not o.run_id = any ($2::uuid[])
    order by o.id
    limit $1
    for update of o skip locked
)
select o.*
from head h
-- `offset 0`: a few index probes for each run at any size of the history, never a walk through all of it.
cross join lateral (
    select o.id as outbox_id, o.kind, t.id as event_id, o.run_id, o.sequence, t.attempt, t.from_status, t.to_status, t.at,
        t.reason_code, r.custom_model_id, r.organization_id, r.requested_at, r.traceparent
    from outbox o
    join run_transitions t on t.run_id = o.run_id and t.sequence = o.sequence
    join training_runs r on r.id = o.run_id
    where o.run_id = h.run_id
    offset 0
) o
order by o.run_id, o.sequence, o.outbox_id

-- name: mark_sent
-- The broker confirmed these.
delete from outbox where id = any ($1::bigint[])

-- name: outbox_backlog
-- How much is untold, and for how long.
select count(*) as rows, coalesce(extract(epoch from db_now() - min(created_at)), 0)::double precision as oldest_s from outbox
