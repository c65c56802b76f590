-- name: register_runs
-- Make rows for requested runs, with history and outbox; those that cannot be made are simply not returned as created.
with wanted as materialized (
    select * from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::timestamptz[], $5::uuid[], $6::text[], $7::jsonb[],
            $8::smallint[])
        as w (run_id, custom_model_id, organization_id, requested_at, transition_id, traceparent, parameters, priority)
), organization as materialized (
    select o.id from organizations o where o.id = any ($3) order by o.id for no key update
), model as materialized (
    select m.id, m.organization_id, m.base_language_id
    from custom_models m
    where m.id = any ($2) and m.organization_id = any (array(select id from organization)) and m.deleted_at is null
    order by m.id
    for no key update
), created as (
    insert into training_runs (id, custom_model_id, organization_id, base_language_id, requested_at, traceparent,
        wanted_parameters, priority, wait_until)
    select w.run_id, m.id, m.organization_id, m.base_language_id, w.requested_at, w.traceparent,
        coalesce(w.parameters, '{}'), coalesce(w.priority, 0), db_now() + $9::double precision * interval '1 second'
    from wanted w
    join model m on m.id = w.custom_model_id and m.organization_id = w.organization_id
    order by w.run_id
    on conflict do nothing
    returning id
), history as (
    insert into run_transitions (id, run_id, sequence, from_status, to_status, attempt)
    select w.transition_id, c.id, 1, null, 2, 0 from created c join wanted w on w.run_id = c.id
), told as (
    insert into outbox (run_id, sequence, kind)
    select c.id, 1, k.kind from created c cross join unnest($10::text[]) with ordinality as k (kind, n) order by c.id, k.n
)
select id as run_id from created

-- name: explain_requests
-- Why a requested run was not created: known already, conflicting, model unknown, deleted or busy.
select w.run_id,
    r.id is not null as known,
    coalesce(r.custom_model_id = w.custom_model_id and r.organization_id = w.organization_id, false) as same_ids,
    m.id is not null as model_known,
    m.deleted_at is not null as model_deleted,
    (select a.id from training_runs a where a.custom_model_id = m.id and a.ended_at is null) as active_run_id
from unnest($1::uuid[], $2::bigint[], $3::bigint[]) as w (run_id, custom_model_id, organization_id)
left join training_runs r on r.id = w.run_id
left join custom_models m on m.id = w.custom_model_id and m.organization_id = w.organization_id

-- name: claim_runs
-- Give free slots to due runs in fair order: the organization with the fewest running, least recently served, first.
with locked as materialized (
    -- Organizations that somebody else is moving right now are passed over, never waited for: two claims at once take
    -- different runs. `offset 0` keeps this a walk along the index with one look per organization, however many wait.
    select o.id, o.running, o.max_running, o.last_claimed_at
    from organizations o
    where o.waiting > 0 and o.running < o.max_running
        and exists (
            select from training_runs r
            where r.organization_id = o.id and r.status = 2 and r.due_at <= db_now()
                and not exists (select from base_languages b where b.id = r.base_language_id and b.running >= b.max_running)
            offset 0)
    order by o.running, o.last_claimed_at nulls first, o.id
    limit $2::int
    for no key update skip locked
), level as materialized (
    -- Nobody is served beyond this turn: with as many organizations as slots, one more each up to the busiest.
    select max(running) + 1 + greatest(0, $2::int - count(*)) as turn from locked
), candidate as materialized (
    select r.id, r.status, r.base_language_id, l.last_claimed_at,
        l.running + row_number() over (partition by l.id order by r.priority desc, r.due_at, r.id) as turn
    from locked l
    cross join level
    cross join lateral (
        select w.id, w.status, w.base_language_id, w.priority, w.due_at
        from training_runs w
        where w.organization_id = l.id and w.status = 2 and w.due_at <= db_now()
            and not exists (select from base_languages b where b.id = w.base_language_id and b.running >= b.max_running)
        order by w.priority desc, w.due_at, w.id
        limit greatest(0, least($2::int, l.max_running - l.running, level.turn - l.running))
    ) r
), base as materialized (
    select b.id, b.max_running - b.running as free
    from base_languages b
    where b.id = any (array(select distinct base_language_id from candidate))
    order by b.id
    for no key update
), ranked as (
    select c.id, c.status, c.turn, c.last_claimed_at, b.free,
        row_number() over (partition by c.base_language_id order by c.turn, c.last_claimed_at nulls first, c.id) as base_turn
    from candidate c join base b on b.id = c.base_language_id
), chosen as (
    select id, status, row_number() over (order by turn, last_claimed_at nulls first, id) as n
    from ranked
    where base_turn <= free
    order by turn, last_claimed_at nulls first, id
    limit $2::int
), claimed as (
    update training_runs r
    set status = 3, sequence = r.sequence + 1, attempt = r.attempt + 1,
        worker_id = $1, lease_expires_at = db_now() + $3::double precision * interval '1 second',
        claimed_at = db_now(), started_at = coalesce(r.started_at, db_now()),
        waited_s = r.waited_s + greatest(0, extract(epoch from db_now() - r.due_at)),
        phase = 'load', percent = 0, eta_s = null, progress_at = db_now()
    from chosen c
    where r.id = c.id and r.status = c.status
    returning r.*, c.n
), history as (
    insert into run_transitions (id, run_id, sequence, from_status, to_status, attempt, worker_id)
    -- Numbered again: a run chosen by two claims at once leaves a gap in n, and ids left over serve the next look.
    select ($4::uuid[])[row_number() over (order by c.n)], c.id, c.sequence, 2, 3, c.attempt, $1 from claimed c
), told as (
    insert into outbox (run_id, sequence, kind) select c.id, c.sequence, 'event' from claimed c
)
select
    -- Whether to look again at once: a run was gone, or an organization that waits was passed over.
    (select count(*) from claimed) < (select count(*) from chosen)
        or (select count(*) from claimed) < $2::int and exists (
            select from organizations o
            where o.waiting > 0 and o.running < o.max_running and not exists (select from locked l where l.id = o.id)
                and exists (
                    select from training_runs r
                    where r.organization_id = o.id and r.status = 2 and r.due_at <= db_now()
                        and not exists (
                            select from base_languages b
                            where b.id = r.base_language_id and b.running >= b.max_running)
                    offset 0)) as more,
    c.id, c.custom_model_id, c.organization_id, c.base_language_id, c.attempt,
    c.failures, c.hand_overs, c.bystander_losses, c.inputs, c.wanted_parameters, c.ran_s, c.waited_s, c.created_at, c.requested_at,
    c.traceparent, c.cancel_requested_at is not null as cancel_requested
from (select) as one left join claimed c on true

-- name: claims_of
-- The runs that a claim with these transition ids took, when its answer was lost on the wire.
select false as more, r.id, r.custom_model_id, r.organization_id, r.base_language_id, r.attempt,
    r.failures, r.hand_overs, r.bystander_losses, r.inputs, r.wanted_parameters, r.ran_s, r.waited_s, r.created_at, r.requested_at,
    r.traceparent, r.cancel_requested_at is not null as cancel_requested
from run_transitions t
join training_runs r on r.id = t.run_id and r.sequence = t.sequence and r.status = 3
where t.id = any ($1::uuid[])

-- name: renew_leases
-- Renew every lease of a worker at once; what is not returned is lost to it.
with mine as materialized (
    select m.id
    from (select * from unnest($2::uuid[], $3::int[]) as m (id, attempt) order by id) m
    cross join lateral (
        select from training_runs r where r.id = m.id and r.attempt = m.attempt and r.status = 3 and r.worker_id = $1
        for update) r
)
update training_runs r
set lease_expires_at = db_now() + $4::double precision * interval '1 second'
from mine
where r.id = mine.id
returning r.id, r.attempt, r.cancel_requested_at is not null as cancel_requested

-- name: record_progress
-- Write how far runs are; only the owner of the attempt can.
with told as materialized (
    select p.*
    from (
        select * from unnest($1::uuid[], $2::int[], $3::text[], $4::real[], $5::real[], $6::jsonb[])
            as p (id, attempt, phase, percent, eta_s, live)
        order by id) p
    cross join lateral (
        select from training_runs r where r.id = p.id and r.attempt = p.attempt and r.status = 3 for update) r
)
update training_runs r
set phase = p.phase, percent = p.percent, eta_s = p.eta_s, live = p.live, progress_at = db_now(),
    -- It got past the phase in which it lost workers: those do not count any more, also where it comes there again.
    worker_losses = case
        when array_position(array['load', 'prepare', 'train', 'evaluate', 'publish'], p.phase)
            > array_position(array['load', 'prepare', 'train', 'evaluate', 'publish'], r.lost_in_phase) then 0
        else r.worker_losses end
from told p
where r.id = p.id

-- name: fix_inputs
-- Fix the run's inputs at its first claim; whoever comes later gets what was fixed then.
with owned as materialized (
    select r.id, r.inputs from training_runs r where r.id = $1 and r.attempt = $2 and r.status = 3 for update
), fixed as (
    update training_runs r set inputs = $3::jsonb from owned o where r.id = o.id and o.inputs is null returning r.inputs
)
select coalesce((select inputs from fixed), o.inputs) as inputs from owned o

-- name: follow_recipe
-- Another version of the recipe is installed where the run goes on: what depends on the version follows, nothing else.
update training_runs set inputs = inputs || $3::jsonb where id = $1 and attempt = $2 and status = 3 returning id

-- name: record_log
-- Where the attempt's log is kept.
update training_runs set log_address = $3 where id = $1 and attempt = $2 and status = 3 returning id

-- name: record_data_report
-- What became of the run's data, before its end.
update training_runs set data_report = $3::jsonb where id = $1 and attempt = $2 and status = 3 returning id

-- name: register_checkpoint
-- A checkpoint exists from here on; only the owner of the attempt can say so.
with owner as materialized (
    select r.id from training_runs r where r.id = $1 and r.attempt = $2 and r.status = 3 for share
), made as (
    insert into run_checkpoints (run_id, attempt, steps_done, address, sha256, bytes, recipe_version)
    select o.id, $2, $3, $4, $5, $6, $7 from owner o
    on conflict (run_id, attempt, steps_done) do nothing
)
select id from owner

-- name: checkpoints_of_run
-- Registered checkpoints of a run, the newest first.
select attempt, steps_done, address, sha256, bytes, recipe_version, created_at
from run_checkpoints where run_id = $1
order by steps_done desc, attempt desc

-- name: forget_checkpoints
-- An attempt prunes its own checkpoints only.
delete from run_checkpoints where run_id = $1 and attempt = $2 and steps_done = any ($3::int[])

-- name: store_step_output
-- Keep what a step made under what it was made from; only the owner of the attempt can.
with owner as materialized (
    select r.organization_id from training_runs r where r.id = $1 and r.attempt = $2 and r.status = 3 for share
), made as (
    insert into step_outputs (organization_id, content_key, step, address, sha256, bytes, result)
    select o.organization_id, $3, $4, $5, $6, $7, $8::jsonb from owner o
    on conflict (organization_id, content_key) do update
        set address = excluded.address, sha256 = excluded.sha256, bytes = excluded.bytes, result = excluded.result,
            used_at = db_now()
)
select organization_id from owner

-- name: find_step_output
-- What a step made earlier from the same content, if it is still kept.
update step_outputs set used_at = db_now() where organization_id = $1 and content_key = $2
returning address, sha256, bytes, result

-- name: forget_step_output
-- Its bytes are gone or spoiled: nobody should look for them again.
delete from step_outputs where organization_id = $1 and content_key = $2

-- name: settle_runs
-- Every move out of a status but the claim: guarded by attempt and status, with history, outbox and the published version.
with wanted as materialized (
    select *
    from jsonb_to_recordset($1::jsonb) as w (run_id uuid, attempt integer, from_status smallint, to_status smallint,
        transition_id uuid, only_if_lease_dead boolean, only_if_overdue boolean, reason_code text, failure_class text,
        failure_code text, failure_reason text, failure_detail text, delay_s double precision, waits_s double precision, failed boolean,
        handed_over boolean, figures jsonb, gate text, data_report jsonb, report_address text,
        version_address text, version_sha256 text, version_figures jsonb, max_wait_s double precision,
        bystander boolean, worker_losses integer, lost_in_phase text, lost_at_steps integer)
), organization as materialized (
    select o.id
    from organizations o
    where o.id = any (array(select (select r.organization_id from training_runs r where r.id = w.run_id) from wanted w))
    order by o.id
    for no key update
), owned as materialized (
    -- The count is always true; it makes the organizations' locks come first.
    select o.*
    from (select * from wanted order by run_id) w
    cross join lateral (
        select r.id, r.custom_model_id, r.base_language_id, r.cancel_requested_at
        from training_runs r
        where r.id = w.run_id and r.attempt = w.attempt and r.status = w.from_status
            and (select count(*) from organization) >= 0
            and (not coalesce(w.only_if_lease_dead, false) or r.lease_expires_at < db_now())
            and (not coalesce(w.only_if_overdue, false) or r.wait_until < db_now())
        for update) o
), model as materialized (
    select m.id, m.deleted_at,
        (select coalesce(max(v.number), 0) + 1 from model_versions v where v.custom_model_id = m.id) as next_number
    from custom_models m
    where m.id = any (array(select custom_model_id from owned))
    order by m.id
    for no key update
), decided as materialized (
    -- A cancel that was asked for, or a deleted model, beats every other end until this commits.
    select w.*, o.custom_model_id, o.base_language_id, m.next_number,
        o.cancel_requested_at is not null or m.deleted_at is not null or w.to_status = 1 as cancelled
    from owned o
    join wanted w on w.run_id = o.id
    join model m on m.id = o.custom_model_id
), moved as (
    update training_runs r
    set status = case when d.cancelled then 1 else d.to_status end,
        sequence = r.sequence + 1,
        failures = r.failures + coalesce(d.failed, false)::int,
        hand_overs = r.hand_overs + coalesce(d.handed_over, false)::int,
        bystander_losses = r.bystander_losses + coalesce(d.bystander, false)::int,
        worker_losses = coalesce(d.worker_losses, r.worker_losses),
        lost_in_phase = coalesce(d.lost_in_phase, r.lost_in_phase),
        lost_at_steps = coalesce(d.lost_at_steps, r.lost_at_steps),
        ran_s = r.ran_s + case when d.from_status = 3
            then greatest(0, extract(epoch from db_now() - r.claimed_at)) else 0 end,
        waited_s = r.waited_s + case when d.from_status = 2
            then greatest(0, extract(epoch from db_now() - r.due_at))
            when d.to_status = 2 and not d.cancelled then coalesce(d.waits_s, 0) else 0 end,
        due_at = case when d.to_status = 2 and not d.cancelled
            then db_now() + coalesce(d.delay_s, 0) * interval '1 second' else r.due_at end,
        wait_until = case when d.to_status = 2 and not d.cancelled
            then db_now() + (coalesce(d.delay_s, 0) - coalesce(d.waits_s, 0) + greatest(0, coalesce(d.max_wait_s, 604800) - r.waited_s))
                * interval '1 second' else r.wait_until end,
        ended_at = case when d.to_status = 2 and not d.cancelled then null else db_now() end,
        worker_id = null, lease_expires_at = null, eta_s = null,
        phase = case when d.to_status = 2 and not d.cancelled then null else r.phase end,
        percent = case when d.to_status = 2 and not d.cancelled then 0
            when d.to_status = 4 and not d.cancelled then 100 else r.percent end,
        failure_class = case when d.cancelled then 'cancelled' when d.to_status = 4 then null
            else coalesce(d.failure_class, r.failure_class) end,
        failure_code = case when d.cancelled then 'cancelled' when d.to_status = 4 then null
            else coalesce(d.failure_code, r.failure_code) end,
        failure_reason = case when d.cancelled then 'The run was cancelled.' when d.to_status = 4 then null
            else coalesce(d.failure_reason, r.failure_reason) end,
        failure_detail = case when d.to_status = 4 and not d.cancelled then null
            else coalesce(d.failure_detail, r.failure_detail) end,
        data_report = coalesce(d.data_report, r.data_report),
        figures = case when d.cancelled then r.figures else coalesce(d.figures, r.figures) end,
        gate = case when d.cancelled then null else coalesce(d.gate, r.gate) end,
        report_address = coalesce(d.report_address, r.report_address)
    from decided d
    where r.id = d.run_id
    returning r.id, r.sequence, r.status, r.attempt, d.from_status, d.transition_id, d.reason_code, d.cancelled
), history as (
    insert into run_transitions (id, run_id, sequence, from_status, to_status, attempt, reason_code)
    select m.transition_id, m.id, m.sequence, m.from_status, m.status, m.attempt,
        case when m.cancelled then 'cancelled' else m.reason_code end
    from moved m
), told as (
    insert into outbox (run_id, sequence, kind) select m.id, m.sequence, 'event' from moved m
), version as (
    insert into model_versions (custom_model_id, number, run_id, attempt, address, sha256, base_language_id, figures)
    select d.custom_model_id, d.next_number, d.run_id, d.attempt, d.version_address, d.version_sha256,
        d.base_language_id, d.version_figures
    from decided d join moved m on m.id = d.run_id
    where m.status = 4 and d.version_address is not null
    returning id, custom_model_id
), published as (
    update custom_models c set published_version_id = v.id from version v where c.id = v.custom_model_id
)
select w.run_id, w.transition_id, coalesce(m.status, t.to_status) as status, m.id is not null as moved,
    coalesce(m.sequence, t.sequence) as sequence
from wanted w
left join moved m on m.id = w.run_id
left join lateral (select * from run_transitions t where t.id = w.transition_id offset 0) t on true

-- name: orphans
-- Runs whose lease has died, whole workers together, the longest dead first: what rescue works on.
with owned as (
    select r.id, r.attempt, r.worker_id, r.lease_expires_at,
        max(r.lease_expires_at) over (partition by r.worker_id) as last_lease_expires_at
    from training_runs r
    where r.status = 3 and r.worker_id is not null
), dead as (
    -- The leases of a worker die one after the other, for each counts from its own claim: wait for the last. But not
    -- for a worker that lives: it has lost this run alone.
    select o.*, count(*) over (order by o.last_lease_expires_at, o.worker_id) as so_far,
        dense_rank() over (order by o.last_lease_expires_at, o.worker_id) as place
    from owned o
    left join workers w on w.id = o.worker_id
    where o.lease_expires_at < db_now()
        and (o.last_lease_expires_at < db_now() or w.seen_at > o.lease_expires_at)
)
select r.id, r.organization_id, r.attempt, r.failures, r.hand_overs, r.worker_id, coalesce(r.phase, 'load') as phase,
    coalesce(c.steps_done, 0) as steps_done,
    case when n.further then 0 else r.worker_losses end as losses,
    case when n.further then coalesce(r.phase, 'load') else r.lost_in_phase end as furthest_phase,
    case when n.further then coalesce(c.steps_done, 0) else r.lost_at_steps end as furthest_steps,
    extract(epoch from db_now() - r.lease_expires_at)::double precision as dead_s
from dead d
join training_runs r on r.id = d.id
cross join lateral (select max(k.steps_done) as steps_done from run_checkpoints k where k.run_id = r.id) c
-- The phase is written once a second, so a worker that dies at once leaves an earlier one: that is no progress.
cross join lateral (select r.lost_in_phase is null or coalesce(c.steps_done, 0) > r.lost_at_steps
    or array_position(array['load', 'prepare', 'train', 'evaluate', 'publish'], coalesce(r.phase, 'load'))
        > array_position(array['load', 'prepare', 'train', 'evaluate', 'publish'], r.lost_in_phase) as further) n
where d.so_far <= $1 or d.place = 1
order by d.place, r.lease_expires_at, r.id

-- name: overdue_waiting
-- Runs that have waited longer than anybody may.
select r.id, r.attempt, r.waited_s from training_runs r
where r.status = 2 and r.wait_until < db_now()
order by r.wait_until
limit $1

-- name: request_cancel
-- Ask a run to stop: a queued one is to be settled by the caller, a running one by its owner at the next heartbeat.
with organization as materialized (
    select o.id from organizations o
    where o.id = (select r.organization_id from training_runs r where r.id = $1)
    for no key update
), asked as (
    update training_runs r set cancel_requested_at = coalesce(r.cancel_requested_at, db_now())
    where r.id = $1 and r.status in (2, 3) and (select count(*) from organization) >= 0
    returning r.id, r.status, r.attempt
)
select r.id, coalesce(a.status, r.status) as status, coalesce(a.attempt, r.attempt) as attempt, a.id is not null as asked
from training_runs r left join asked a on a.id = r.id
where r.id = $1

-- name: cancelled_untidied
-- Cancelled runs whose artifacts are still there, the oldest first.
select r.id, r.organization_id from training_runs r
where r.status = 1 and r.tidied_at is null
order by r.ended_at
limit $1

-- name: lock_organization
-- Whoever claims or moves a run of this organization waits.
select o.id from organizations o where o.id = $1 for no key update

-- name: forget_cancelled
-- From here on nobody finds what a cancelled run made; not while another run of its model may be reading it.
with free as materialized (
    select r.id, r.organization_id from training_runs r
    where r.id = $1 and r.status = 1
        and not exists (select from training_runs a where a.custom_model_id = r.custom_model_id and a.status = 3)
), outputs as (
    delete from step_outputs s using free f
    where s.organization_id = f.organization_id and starts_with(s.address, 'runs/' || f.id || '/')
), checkpoints as (
    delete from run_checkpoints c using free f where c.run_id = f.id
)
select id from free

-- name: mark_tidied
-- The artifacts of a cancelled run are gone.
update training_runs set tidied_at = db_now() where id = $1 and status = 1

-- name: run_by_id
-- One run, whole.
select r.*, m.name as model_name, m.key as model_key from training_runs r join custom_models m on m.id = r.custom_model_id
where r.id = $1

-- name: transitions_of_run
-- The history of a run, in order.
select id, sequence, from_status, to_status, attempt, at, worker_id, reason_code
from run_transitions where run_id = $1 order by sequence

-- name: list_runs
-- Runs for an operator's eyes, the newest first.
select r.id, r.custom_model_id, m.key as model_key, r.organization_id, r.status, r.phase, r.percent, r.eta_s, r.attempt,
    r.failures, r.created_at, r.started_at, r.ended_at, r.worker_id, r.failure_class, r.failure_code, r.failure_reason,
    r.gate, r.figures, r.due_at, r.cancel_requested_at,
    extract(epoch from db_now() - r.progress_at)::double precision as since_progress_s
from training_runs r
join custom_models m on m.id = r.custom_model_id
where ($1::smallint[] is null or r.status = any ($1)) and ($2::bigint is null or r.custom_model_id = $2)
order by r.created_at desc, r.id
limit $3
