-- name: data_page
-- A page of a model's training data, in the order of arrival.
select id, name, kind, bytes, duration_s, split, verdict, reason_code, reason, created_at
from training_data where custom_model_id = $1 order by id offset $2 limit $3

-- name: hold_data
-- One change of a model's data at a time, so that two halves of a pair that arrive together see each other.
select pg_advisory_xact_lock(1906, hashint8($1::bigint))

-- name: try_hold_data
-- The same, at once or not at all: whoever waits for it does so without a connection that others need.
select pg_try_advisory_xact_lock(1906, hashint8($1::bigint)) as mine

-- name: named
-- What a model has under these names.
select id, name, stem, address, created_at from training_data where custom_model_id = $1 and name = any ($2::text[])

-- name: data_item
-- One item of a model.
select id, name, stem, kind, address, created_at from training_data where custom_model_id = $1 and id = $2

-- name: items
-- Items as they are shown.
select id, name, kind, bytes, duration_s, split, verdict, reason_code, reason, created_at
from training_data where custom_model_id = $1 and id = any ($2::bigint[]) order by id

-- name: forget_manifest_names
-- A manifest that came again names other audio.
delete from manifest_names where data_id = $1

-- name: keep_manifest_names
-- Audio that a manifest names.
insert into manifest_names (data_id, custom_model_id, audio_name) select $1, $2, unnest($3::text[]) on conflict do nothing

-- name: recheck_stems
-- Whether the files of these stems have their other half: by stem, or named in a manifest, whatever the folder. $3: their content
-- changed, so a verdict of an earlier run says nothing any more.
with looked_at as (
    select d.id, d.verdict,
        exists (select from training_data o where o.custom_model_id = d.custom_model_id and o.stem = d.stem
            and o.kind = case d.kind when 'audio' then 'transcript' else 'audio' end)
        or (d.kind = 'audio' and exists (select from manifest_names n
            where n.custom_model_id = d.custom_model_id and n.audio_name = substring(d.name from '[^/]*$'))) as paired
    from (select distinct unnest($2::text[]) as stem) s
    join training_data d on d.custom_model_id = $1 and d.stem = s.stem and d.kind <> 'manifest'
)
update training_data d
set verdict = case when not l.paired then 'waiting_for_pair' else 'waiting_for_run' end, reason_code = null, reason = null
from looked_at l
where d.id = l.id and (not l.paired and l.verdict <> 'waiting_for_pair' or l.paired and (l.verdict = 'waiting_for_pair'
    or $3::boolean and l.verdict <> 'waiting_for_run'))

-- name: recheck_audio
-- The same of recordings whose id is above $2, the next $3 of them, after a manifest came, changed or went: each asks an index whether
-- it is named, so that this grows with the model's recordings and not with recordings times names. The last id looked at.
with looked_at as (
    select d.id, d.kind, d.verdict,
        exists (select from training_data o where o.custom_model_id = d.custom_model_id and o.stem = d.stem and o.kind = 'transcript')
        or exists (select from manifest_names n
            where n.custom_model_id = d.custom_model_id and n.audio_name = substring(d.name from '[^/]*$')) as paired
    from training_data d
    where d.custom_model_id = $1 and d.id > $2
    order by d.id limit $3
), changed as (
    update training_data d
    set verdict = case when not l.paired then 'waiting_for_pair' else 'waiting_for_run' end, reason_code = null, reason = null
    from looked_at l
    where d.id = l.id and l.kind = 'audio' and l.paired = (l.verdict = 'waiting_for_pair')
)
select max(id) as last from looked_at

-- name: delete_item
-- One item of a model, gone.
delete from training_data where custom_model_id = $1 and id = $2

-- name: may_remove
-- Bytes that may have no owner: looked at again later, when nothing can refer to them any more.
insert into removals (address, custom_model_id) select unnest($2::text[]), $1

-- name: create_upload
-- A large file begins.
insert into uploads (id, custom_model_id, organization_id, name, split, bytes) values ($1, $2, $3, $4, $5, $6)
returning id, name, split, bytes, received, parts, changed_at

-- name: count_uploads
-- How many files are on their way to a model.
select count(*) as n from uploads where custom_model_id = $1

-- name: upload_of
-- A file on its way.
select id, name, split, bytes, received, parts, changed_at from uploads where id = $1 and custom_model_id = $2

-- name: add_part
-- The next part is stored; nothing where another was faster.
update uploads set received = received + $4, parts = parts || $5::text, changed_at = now()
where id = $1 and custom_model_id = $2 and received = $3
returning id, name, split, bytes, received, parts, changed_at

-- name: end_upload
-- The file has arrived, or is not wanted any more.
delete from uploads where id = $1 and custom_model_id = $2 returning parts

-- name: stale_uploads
-- Files that nobody sends any more.
delete from uploads where id in (
    select id from uploads where changed_at < now() - interval '24 hours' order by changed_at limit 100 for update skip locked)
returning id, custom_model_id, parts

-- name: due_removals
-- Bytes to look at again: old enough for whoever was storing them to have committed, and no run can still read them.
select r.id, r.address, r.custom_model_id,
    exists (select from training_data d where d.custom_model_id = r.custom_model_id and d.address = r.address)
    or exists (select from uploads u where u.custom_model_id = r.custom_model_id and r.address = any (u.parts)) as used
from removals r
where r.created_at < now() - interval '1 hour'
    and not exists (select from removals y where y.address = r.address and y.created_at >= now() - interval '1 hour')
    and not exists (select from training_runs a where a.custom_model_id = r.custom_model_id and a.ended_at is null)
order by r.id limit $1
for update of r skip locked

-- name: removed
-- Looked at.
delete from removals where id = any ($1::bigint[])

-- name: to_purge
-- Deleted models whose runs are over: their bytes can go.
select m.id, m.organization_id, array(select r.id from training_runs r where r.custom_model_id = m.id) as runs
from custom_models m
where m.deleted_at is not null and m.purged_at is null
    and not exists (select from training_runs a where a.custom_model_id = m.id and a.ended_at is null)
order by m.deleted_at limit 1
for update of m skip locked

-- name: forget_outputs_of_runs
-- Step outputs that lie under runs which are about to go.
delete from step_outputs s
where s.organization_id = $1 and exists (select from unnest($2::uuid[]) as r (id) where s.address like 'runs/' || r.id || '/%')

-- name: purge_rows
-- The rows of a deleted model's data, after its bytes.
delete from training_data where custom_model_id = $1

-- name: purged
-- Nothing of the model is stored any more.
update custom_models set purged_at = now() where id = $1

-- name: forget_answers
-- Answers are kept for a day.
delete from idempotency_keys where created_at < now() - interval '25 hours'
