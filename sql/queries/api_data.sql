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
select id, name, stem, bytes, sha256, address, created_at from training_data where custom_model_id = $1 and name = any ($2::text[])

-- name: data_item
-- One item of a model.
select id, name, stem, kind, bytes, address, created_at from training_data where custom_model_id = $1 and id = $2

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

-- name: intend
-- Bytes that a request is about to store: they go an hour later, unless a row owns them by then.
insert into removals (address, custom_model_id, bytes, arriving)
select a.address, $1, a.bytes, true from unnest($2::text[], $3::bigint[]) as a (address, bytes)

-- name: settle_intent
-- What a request stored has an owner now, or lies in storage no more.
delete from removals where custom_model_id = $1 and arriving and address = any ($2::text[])

-- name: unowned
-- What a request has stored and no file owns.
select a.address from unnest($2::text[]) as a (address)
where not exists (select from training_data d where d.address = a.address and d.custom_model_id = $1 offset 0)

-- name: may_remove
-- Bytes that lost their owner. An address with a random end is never stored to again, so they go as soon as no run needs
-- them; under any other address somebody may be storing the same content just now.
insert into removals (address, custom_model_id, bytes, due_at)
select a.address, $1, a.bytes, case when a.address ~ '-[0-9a-f]{12}$' then now() else now() + interval '1 hour' end
from unnest($2::text[], $3::bigint[]) as a (address, bytes)

-- name: erase
-- Files that their owner removed or replaced: what runs made of them goes as well.
insert into erasures (custom_model_id, name)
select $1, unnest($2::text[]) where exists (select from training_runs r where r.custom_model_id = $1)

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
-- The next part is stored, and owned from here on; nothing where another was faster.
with longer as (
    update uploads set received = received + $4, parts = parts || $5::text, changed_at = now()
    where id = $1 and custom_model_id = $2 and received = $3
    returning id, name, split, bytes, received, parts, changed_at
), owned as (
    delete from removals r using longer where r.custom_model_id = $2 and r.arriving and r.address = $5
)
select * from longer

-- name: end_upload
-- The file has arrived, or is not wanted any more.
delete from uploads where id = $1 and custom_model_id = $2 returning parts, received

-- name: stale_uploads
-- Files that nobody sends any more.
select id, custom_model_id from uploads where changed_at < now() - interval '24 hours' order by changed_at limit $1

-- name: end_stale_uploads
-- Those of one model that are still stale and nobody else ends.
delete from uploads where id in (
    select id from uploads where id = any ($1::uuid[]) and changed_at < now() - interval '24 hours' for update skip locked)
returning id, custom_model_id, parts, received

-- let stored_to: exists (select from removals y where y.address = r.address and y.due_at > now())
-- let may_be_read: exists (select from training_runs a where a.custom_model_id = r.custom_model_id and a.ended_at is null)
-- let is_due: r.due_at <= now() and not {stored_to} and not {may_be_read}

-- name: due_removals
-- Bytes to look at again: whoever was storing them has committed by now, and no run can still read them.
select r.id, r.custom_model_id from removals r where {is_due} order by r.due_at, r.id limit $1

-- name: hold_removals
-- Those of one model that are still due and nobody else looks at, and whether a row owns the bytes.
select r.id, r.address,
    exists (select from training_data d where d.address = r.address offset 0)
    or r.address like '%/parts/%'
        and exists (select from uploads u where u.custom_model_id = r.custom_model_id and r.address = any (u.parts) offset 0) as used
from removals r
where r.id = any ($1::bigint[]) and {is_due}
for update of r skip locked

-- name: removed
-- Looked at.
delete from removals where id = any ($1::bigint[])

-- name: to_purge
-- Deleted models whose runs are over: their bytes can go. An hour later once more, for what a late writer left.
select m.id, m.organization_id, array(select r.id from training_runs r where r.custom_model_id = m.id) as runs
from custom_models m
where m.deleted_at is not null and m.cleared_at is null and (m.purged_at is null or m.purged_at < now() - interval '1 hour')
    and not exists (select from training_runs a where a.custom_model_id = m.id and a.ended_at is null)
order by m.deleted_at limit $1

-- name: take_purge
-- One process at a time works on a model; false: another one does.
select pg_try_advisory_xact_lock(1907, hashint8($1::bigint)) as mine

-- name: forget_outputs_of_runs
-- Step outputs that lie under runs which are about to go.
delete from step_outputs s
where s.organization_id = $1 and exists (select from unnest($2::uuid[]) as r (id) where s.address like 'runs/' || r.id || '/%')

-- name: purge_names
-- What a deleted model's manifests name, before the manifests: of one there may be 200,000, and a statement must end in time.
delete from manifest_names where (data_id, audio_name) in (
    select data_id, audio_name from manifest_names where custom_model_id = $1 order by audio_name limit $2)

-- name: purge_rows
-- Rows of a deleted model's data, after its bytes: a few at a time, for the organization's counts are locked meanwhile.
delete from training_data where id in (select id from training_data where custom_model_id = $1 order by id limit $2)

-- name: purge_uploads
-- Unfinished uploads of a deleted model.
delete from uploads where custom_model_id = $1

-- name: purge_removals
-- What the purge has removed with all else of the model; not what a request is still storing, nor what another process is
-- removing: the counts are locked here, and nobody should wait for them as long as for storage.
delete from removals where id in (
    select id from removals where custom_model_id = $1 and due_at <= now() for update skip locked)

-- name: purge_erasures
-- The whole model is gone, not only these files.
delete from erasures where custom_model_id = $1

-- name: clear_deleted_model
-- No row holds the customer's words any more.
select clear_deleted_model($1::bigint)

-- name: clear_answers
-- Answers kept for a repeat of what was asked about a deleted model: there is no such model any more.
update idempotency_keys i
set status = 404, media_type = 'application/problem+json', answer = $2::bytea
where i.custom_model_id = $1 and i.method <> 'DELETE' and i.status < 300

-- name: purged
-- Nothing of the model is stored any more; the second time for good.
update custom_models set cleared_at = case when purged_at is not null then now() end, purged_at = coalesce(purged_at, now()) where id = $1

-- name: forget_models
-- Deleted models that never trained: no message and no run can ask for them any more; how many.
select forget_untrained_models($1::integer) as n

-- name: to_erase
-- A model whose removed files runs may have read, none of which is active. Ten minutes after the first of them, so that
-- files removed one by one are looked for together.
select e.custom_model_id as model_id, m.organization_id, array_agg(e.id) as ids, array_agg(e.name) as names, max(e.created_at) as until
from (
    select e.id, e.custom_model_id, e.name, e.created_at
    from erasures e
    where e.custom_model_id = (
        select f.custom_model_id from erasures f
        where f.created_at < db_now() - interval '10 minutes'
            and not exists (select from training_runs a where a.custom_model_id = f.custom_model_id and a.ended_at is null)
        order by f.id limit 1)
    order by e.id limit $1) e
join custom_models m on m.id = e.custom_model_id
group by 1, 2

-- name: runs_that_read
-- Runs of a model that were asked for before a moment or are active, with their report and the version that came of them.
select r.id, r.report_address, (select v.address from model_versions v where v.run_id = r.id) as version_address,
    r.ended_at is null as active, r.erased_at is not null as erased
from training_runs r
where r.custom_model_id = $1 and (r.created_at <= $2 or r.ended_at is null)

-- name: forget_data_of_runs
-- What later runs would find of these: datasets, and states of training.
delete from step_outputs s
where s.organization_id = $1 and s.step <> 'export'
    and exists (select from unnest($2::uuid[]) as r (id) where starts_with(s.address, 'runs/' || r.id || '/'))

-- name: forget_checkpoints_of_runs
-- Nobody resumes a run that is over.
delete from run_checkpoints where run_id = any ($1::uuid[])

-- name: clear_removed_files
-- What runs said about removed files.
select clear_removed_files($1::bigint, $2::text[], $3::timestamptz)

-- name: runs_erased
-- Nothing that these runs stored is left but their logs, versions and reports.
update training_runs set erased_at = db_now() where id = any ($1::uuid[])

-- name: forget_report
-- The page is gone; the summary made from figures is shown in its place.
update training_runs set report_address = null where id = $1

-- name: erased
-- Nothing made of these files is kept but the weights of versions.
delete from erasures where id = any ($1::bigint[])

-- name: forget_answers
-- Answers are kept for a day.
delete from idempotency_keys where (api_key_id, method, path, key) in (
    select api_key_id, method, path, key from idempotency_keys
    where created_at < now() - interval '25 hours' order by created_at limit $1)
