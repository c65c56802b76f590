-- name: sign_on
-- A worker process begins; its identity is fresh.
insert into workers (id, host, pid, version, slots) values ($1, $2, $3, $4, $5)

-- name: sign_of_life
-- The worker is here; tells whether an operator asked it to drain.
update workers set seen_at = db_now() where id = $1 returning drain_requested_at is not null as drain

-- name: sign_off
-- The worker ended in order.
update workers set stopped_at = db_now() where id = $1

-- name: request_drain
-- Ask one worker to hand its runs over and end.
update workers set drain_requested_at = coalesce(drain_requested_at, db_now())
where id = $1 and stopped_at is null
returning id

-- name: list_workers
-- Who works, the newest first.
select w.id, w.host, w.pid, w.version, w.slots, w.started_at, w.seen_at, w.drain_requested_at, w.stopped_at,
    (select count(*) from training_runs r where r.worker_id = w.id and r.status = 3) as running
from workers w
where $1::boolean or (w.stopped_at is null and w.seen_at > db_now() - interval '1 day')
order by w.started_at desc
limit 200

-- name: look
-- Is the database there, and does it take what owners write? Its clock.
update workers set seen_at = db_now() where id = $1 returning seen_at as now
