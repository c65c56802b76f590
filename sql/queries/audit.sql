-- name: audit
-- Something that somebody did, in the transaction that did it. Time and login are added by the database; whose model it was,
-- too, where the writer does not know.
insert into audit_log (api_key_id, organization_id, action, custom_model_id, run_id, detail, address, request_id, os_user, host,
    command)
values ($1, coalesce($2::bigint, (select m.organization_id from custom_models m where m.id = $4)), $3, $4::bigint, $5, $6::jsonb, $7, $8, $9,
    $10, $11::jsonb)

-- name: audit_summaries
-- Refusals and repeated reads, summed up.
insert into audit_log (api_key_id, organization_id, action, custom_model_id, run_id, detail, address, request_id)
select s.api_key_id, coalesce(s.organization_id, (select m.organization_id from custom_models m where m.id = s.custom_model_id)),
    s.action, s.custom_model_id, s.run_id, s.detail, s.address, s.request_id
from unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::uuid[], $6::jsonb[], $7::text[], $8::text[])
    as s (api_key_id, organization_id, action, custom_model_id, run_id, detail, address, request_id)

-- name: audit_page
-- Who did what in an organization, the newest first.
select id, at, api_key_id, action, custom_model_id, run_id, detail, address, request_id from audit_log
where organization_id = $1 and id < $2 order by id desc limit $3

-- name: audit_entries
-- Entries for an operator, the oldest first, after an id: $3 from, $4 before a time, of an organization, an action, a key.
select * from audit_log
where id > $1 and ($3::timestamptz is null or at >= $3) and ($4::timestamptz is null or at < $4)
    and ($5::bigint is null or organization_id = $5) and ($6::text is null or action = $6)
    and ($7::bigint is null or api_key_id = $7)
order by id limit $2

-- name: newest_audit_entries
-- The same, the newest first.
select * from audit_log
where ($2::timestamptz is null or at >= $2) and ($3::timestamptz is null or at < $3)
    and ($4::bigint is null or organization_id = $4) and ($5::text is null or action = $5)
    and ($6::bigint is null or api_key_id = $6)
order by id desc limit $1

-- name: forget_audit_entries
-- One batch of entries older than so many days goes; how many.
select forget_audit_entries($1, $2) as n

-- name: subject_of_model
-- Whose model it is, by what an operator types: its key or its id.
select id as model_id, organization_id from custom_models where key = $1 or id::text = $1

-- name: subject_of_run
-- Whose run it is.
select id as run_id, custom_model_id as model_id, organization_id from training_runs where id = $1

-- name: subject_of_key
-- Whose key it is; null: an operator's.
select organization_id from api_keys where id = $1
