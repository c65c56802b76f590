-- name: backlog
-- What waits and for what, what runs, who works: for the gauges. One pass over the waiting runs; its caller spaces it.
with capped_base as materialized (
    select id from base_languages where running >= max_running
), waiting as (
    select r.due_at, r.due_at > db_now() as back_off, o.running >= o.max_running as organization_cap,
        r.base_language_id = any (array(select id from capped_base)) as base_language_cap
    from organizations o
    join training_runs r on r.organization_id = o.id and r.status = 2
    where o.waiting > 0
), caused as (
    select w.due_at,
        case when w.back_off then 'back_off' when w.organization_cap then 'organization_cap'
            when w.base_language_cap then 'base_language_cap' else 'slot' end as cause
    from waiting w
), by_cause as (
    select cause, count(*) as runs, greatest(0, extract(epoch from db_now() - min(due_at)))::double precision as oldest_s
    from caused group by cause
)
select
    coalesce((select jsonb_object_agg(cause, jsonb_build_array(runs, oldest_s)) from by_cause), '{}') as waiting,
    (select count(*) from organizations where waiting > 0) as organizations_waiting,
    (select coalesce(max(waiting), 0) from organizations where waiting > 0) as longest_queue,
    (select coalesce(sum(running), 0)::bigint from organizations where running > 0) as running,
    (select count(*) from training_runs r where r.worker_id is not null and r.lease_expires_at < db_now()) as expired_leases,
    w.workers, w.slots
from (
    select count(*) as workers, coalesce(sum(slots), 0)::bigint as slots from workers
    where stopped_at is null and seen_at > db_now() - $1::double precision * interval '1 second'
) w
