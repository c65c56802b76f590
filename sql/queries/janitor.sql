-- name: spent_outputs
-- Outputs that nobody will ask for again: of a run that is over, what only this run could use; and what was long unused.
-- What a model version or a report still needs keeps its bytes and loses its row only.
select s.organization_id, s.content_key, s.address,
    exists (select from model_versions v where v.run_id = r.id and v.address = s.address)
        or coalesce(r.report_address like s.address || '/%', false) as needed
from step_outputs s
left join training_runs r on r.id = case when s.address ~ '^runs/[0-9a-f-]{36}/' then split_part(s.address, '/', 2)::uuid end
where s.step <> 'prepare' and r.status in (1, 4, 5) and r.ended_at < db_now() - $1::double precision * interval '1 second'
    or s.used_at < db_now() - $2::double precision * interval '1 second'
limit $3
for update of s skip locked

-- name: forget_outputs
-- Their bytes are gone, or belong to somebody else now.
delete from step_outputs s
using unnest($1::bigint[], $2::text[]) as g (organization_id, content_key)
where s.organization_id = g.organization_id and s.content_key = g.content_key

-- name: spent_checkpoints
-- Checkpoints of runs that are over: nobody resumes from them.
select c.run_id, c.attempt, c.steps_done, c.address
from run_checkpoints c
join training_runs r on r.id = c.run_id
where r.status in (1, 4, 5) and r.ended_at < db_now() - $1::double precision * interval '1 second'
limit $2
for update of c skip locked

-- name: forget_spent_checkpoints
-- Their bytes are gone.
delete from run_checkpoints c
using unnest($1::uuid[], $2::int[], $3::int[]) as g (run_id, attempt, steps_done)
where c.run_id = g.run_id and c.attempt = g.attempt and c.steps_done = g.steps_done

-- name: unswept_runs
-- Runs that are over and whose folders nobody has looked through, with all in there that a row names. Not while a run of
-- the model is under way: it may read what an earlier one made under a name that is another's now.
select r.id, array_remove(array(
    select regexp_replace(f.file, '/[^/]*$', '') from (values (r.inputs ->> 'manifest'), (r.report_address)) as f (file)
    union all select r.log_address
    union all select v.address from model_versions v where v.run_id = r.id
    union all select c.address from run_checkpoints c where c.run_id = r.id
    union all select s.address from step_outputs s
        where s.organization_id = r.organization_id and starts_with(s.address, 'runs/' || r.id || '/')
), null) as named
from training_runs r
where r.status in (4, 5) and r.tidied_at is null and r.ended_at < db_now() - $1::double precision * interval '1 second'
    and not exists (select from training_runs a where a.custom_model_id = r.custom_model_id and a.ended_at is null)
order by r.ended_at
limit $2
for no key update of r skip locked

-- name: mark_swept
-- Only what a row names is left of them.
update training_runs set tidied_at = db_now() where id = any ($1::uuid[])

-- name: attempts_under_way
-- Which of these runs are running, and in which attempt; runs unknown here are not in the answer.
select r.id, case when r.status = 3 then r.attempt end as attempt from training_runs r where r.id = any ($1::uuid[])

-- name: deleted_keys
-- Keys of training data that no row owns any more; and of runs that are over, what no row names, or all of it where
-- the model is deleted. Keys of runs that this database does not know stay.
select k.key
from unnest($1::text[]) as k (key)
where case
    when k.key ~ '^organizations/[0-9]+/models/[0-9]+/data/'
        then not exists (select from training_data d where d.address = k.key offset 0)
    when k.key ~ '^runs/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/' then exists (
        select from training_runs r join custom_models m on m.id = r.custom_model_id
        where r.id = split_part(k.key, '/', 2)::uuid and r.ended_at is not null
            and (m.deleted_at is not null
                or not exists (select from model_versions v where v.run_id = r.id and starts_with(k.key, v.address))
                and not exists (select from step_outputs s
                    where s.organization_id = r.organization_id and starts_with(k.key, s.address)))
        offset 0)
    else false end
