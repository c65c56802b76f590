-- name: polled
-- Models for whoever may see them: one index read each, several polls in one statement. Null organization: an operator.
select w.n, m.id, m.key, m.name, m.last_modified, m.organization_id, m.usable_ms, m.base_language_id, m.base_language_key,
    m.training_status, m.data_items, m.published_version_id
from unnest($1::bigint[], $2::bigint[]) with ordinality as w (id, organization_id, n)
join custom_models m on m.id = w.id and m.deleted_at is null
    and m.organization_id = coalesce(w.organization_id, m.organization_id)

-- name: watched
-- What a watcher compares: the model's move counter and its active run's progress.
select m.id, m.last_modified, m.training_status, m.usable_ms, m.data_items, r.phase, r.percent
from custom_models m
left join training_runs r on r.custom_model_id = m.id and r.ended_at is null
where m.id = any ($1::bigint[]) and m.deleted_at is null

-- name: lock_organization
-- Whoever moves a run or deletes a model takes this first.
select id from organizations where id = $1 for no key update

-- name: lock_model
-- A model, held against runs that would start meanwhile. Null organization: an operator.
select m.id, m.key, m.name, m.last_modified, m.organization_id, m.usable_ms, m.base_language_id, m.base_language_key,
    m.training_status, m.data_items, m.published_version_id
from custom_models m
where m.id = $1 and m.deleted_at is null and m.organization_id = coalesce($2::bigint, m.organization_id)
for no key update

-- name: create_model
-- A custom model of an organization; nothing is made where the base language or the organization does not exist.
insert into custom_models (key, name, organization_id, base_language_id)
select $1, $2, o.id, b.id from organizations o, base_languages b where o.id = $3 and b.id = $4
returning id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status,
    data_items, published_version_id

-- name: known_parts
-- Which of the two that a new model needs exist.
select exists (select from organizations where id = $1) as organization, exists (select from base_languages where id = $2) as base

-- name: update_model
-- Change a model's metadata; the published version stays.
update custom_models m
set name = $2, base_language_id = $3, last_modified = greatest(db_now(), m.last_modified + interval '1 microsecond')
where m.id = $1 and m.deleted_at is null
returning id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status,
    data_items, published_version_id

-- name: delete_model
-- Hide a model for good; its key stays taken.
update custom_models set deleted_at = db_now(), last_modified = greatest(db_now(), last_modified + interval '1 microsecond')
where id = $1 and deleted_at is null
returning id

-- name: base_languages
-- What models may start from.
select id, key, name from base_languages order by key collate "C"

-- name: counts_of
-- An organization's exact counts, and the revision that any change of its models moves.
select models, stored_bytes, stored_ms, revision, stored_files, manifest_names, uploads, upload_bytes, arriving_bytes,
    leaving_bytes, case when changes_on = current_date then changes else 0 end as changes
from organization_counts where organization_id = $1

-- name: hold_counts
-- An organization's counts, which stay as they are until the transaction ends.
select models, stored_bytes, stored_ms, revision, stored_files, manifest_names, uploads, upload_bytes, arriving_bytes,
    leaving_bytes, case when changes_on = current_date then changes else 0 end as changes
from organization_counts where organization_id = $1 for no key update

-- name: count_changes
-- So many more things that an organization made today; the day begins at midnight of the server.
insert into organization_counts as c (organization_id, changes, changes_on) values ($1, $2, current_date)
on conflict (organization_id) do update
    set changes = case when c.changes_on = current_date then c.changes else 0 end + $2, changes_on = current_date
returning changes

-- name: quota_of
-- An organization's own limits, where it has any, and what it has waiting.
select o.waiting, q.max_models, q.max_stored_hours, q.max_waiting, q.max_stored_bytes, q.max_files, q.max_uploads,
    q.max_manifest_names, q.max_changes
from organizations o left join quotas q on q.organization_id = o.id where o.id = $1

-- name: set_quota
-- An organization's own limits; null is the settings' default.
insert into quotas (organization_id, max_models, max_stored_hours, max_waiting, max_stored_bytes, max_files, max_uploads,
    max_manifest_names, max_changes)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
on conflict (organization_id) do update set max_models = excluded.max_models,
    max_stored_hours = excluded.max_stored_hours, max_waiting = excluded.max_waiting,
    max_stored_bytes = excluded.max_stored_bytes, max_files = excluded.max_files, max_uploads = excluded.max_uploads,
    max_manifest_names = excluded.max_manifest_names, max_changes = excluded.max_changes

-- name: versions
-- What a model has published, the newest first.
select v.number, v.run_id, v.figures, v.created_at, coalesce(v.id = m.published_version_id, false) as serving
from model_versions v join custom_models m on m.id = v.custom_model_id
where v.custom_model_id = $1
order by v.number desc
limit $3 offset $2

-- name: count_versions
-- How many versions a model has published.
select count(*) as n from model_versions where custom_model_id = $1
