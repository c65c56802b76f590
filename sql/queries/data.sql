-- name: add_data
-- A file of a model; a file of the same name is replaced by it.
insert into training_data (custom_model_id, organization_id, name, stem, kind, bytes, sha256, address, duration_s, split,
    speaker, verdict, reason_code, reason)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
on conflict (custom_model_id, name) do update set stem = excluded.stem, kind = excluded.kind, bytes = excluded.bytes,
    sha256 = excluded.sha256, address = excluded.address, duration_s = excluded.duration_s, split = excluded.split,
    speaker = excluded.speaker, verdict = excluded.verdict, reason_code = excluded.reason_code, reason = excluded.reason,
    used_s = null,
    created_at = now()
returning id

-- name: data_of_model
-- Everything a model may train on, in a fixed order, a page at a time.
select id, name, stem, kind, bytes, sha256, address, duration_s, split, speaker, verdict, reason_code, reason, created_at
from training_data
where custom_model_id = $1 and id > $2
order by id
limit $3

-- name: digests_of
-- What some files of a model hold now.
select id, sha256 from training_data where custom_model_id = $1 and id = any ($2::bigint[])

-- name: mates_of
-- What the files of a model that pair with some of its files hold now.
select asked.id, mate.id as mate, mate.sha256
from unnest($2::bigint[]) as asked (id)
cross join lateral (select d.stem from training_data d where d.id = asked.id and d.custom_model_id = $1 offset 0) one
cross join lateral (
    select d.id, d.sha256 from training_data d
    where d.custom_model_id = $1 and d.stem = one.stem and d.id <> asked.id offset 0) mate

-- name: splits_of_model
-- What the rows of a model were in its trainings, a page at a time.
select recording, start_ms, split from row_splits
where custom_model_id = $1 and (recording, start_ms) > ($2::bytea, $3::bigint)
order by recording, start_ms
limit $4

-- name: last_of_newest_version
-- The last file that a model had when its newest version was made; null where none was made.
select max(d.id) as id
from training_data d
where d.custom_model_id = $1
    and d.created_at <= (select max(v.created_at) from model_versions v where v.custom_model_id = $1)

-- name: keep_splits
-- What rows are in a run's training; only the owner of the attempt can say so.
insert into row_splits (custom_model_id, recording, start_ms, split)
select o.custom_model_id, s.recording, s.start_ms, s.split
from (select r.custom_model_id from training_runs r where r.id = $1 and r.attempt = $2 and r.status = 3 for share) o
cross join unnest($3::bytea[], $4::bigint[], $5::text[]) as s (recording, start_ms, split)
on conflict (custom_model_id, recording, start_ms) do update set split = excluded.split
where row_splits.split <> excluded.split

-- name: set_verdicts
-- What a run found out about its files; only the owner of the attempt can say so.
with owner as materialized (
    select r.custom_model_id from training_runs r where r.id = $1 and r.attempt = $2 and r.status = 3 for share
), found as materialized (
    -- File by file: joined to the model, each page would read all of a large model's files.
    select v.*
    from owner o
    cross join unnest($3::bigint[], $4::text[], $5::text[], $6::text[], $7::double precision[], $8::double precision[])
        as v (id, verdict, reason_code, reason, used_s, recording_s)
    cross join lateral (
        select from training_data d where d.id = v.id and d.custom_model_id = o.custom_model_id offset 0) mine
)
update training_data d
set verdict = f.verdict, reason_code = f.reason_code, reason = f.reason,
    duration_s = coalesce(f.recording_s, d.duration_s, f.used_s), used_s = f.used_s
from found f
where d.id = f.id