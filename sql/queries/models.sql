-- name: create_organization
-- A customer; the id may be given.
insert into organizations (id, name, max_running)
values (coalesce($1::bigint, nextval(pg_get_serial_sequence('organizations', 'id'))), $2, coalesce($3::integer, 10))
on conflict (id) do update set name = excluded.name, max_running = coalesce($3::integer, organizations.max_running)
returning id

-- name: create_base_language
-- A language that models start from; the same key again changes it for runs to come.
insert into base_languages (key, name, recipe, weights, version, hyper_parameters, general_set, language)
values ($1, $2, $3, $4, $5, $6::jsonb, $7, $8)
on conflict (key) do update set name = excluded.name, recipe = excluded.recipe, weights = excluded.weights,
    version = excluded.version, hyper_parameters = excluded.hyper_parameters, general_set = excluded.general_set,
    language = excluded.language
returning id

-- name: create_custom_model
-- A custom model of an organization, from a base language.
insert into custom_models (key, name, organization_id, base_language_id) values ($1, $2, $3, $4) returning id

-- name: model_by_key_or_id
-- A model for an operator, by what they have at hand.
select m.id, m.key, m.name, m.organization_id, m.base_language_id, m.training_status, m.published_version_id, m.deleted_at,
    v.address as version_address, v.number as version_number
from custom_models m
left join model_versions v on v.id = m.published_version_id
where m.key = $1 or m.id::text = $1

-- name: base_language_by_id
-- A base language, whole.
select id, key, name, recipe, weights, version, hyper_parameters, general_set, language from base_languages where id = $1

-- name: base_language_by_key
-- A base language, by key.
select id, key, name, recipe, weights, version, hyper_parameters, general_set, language from base_languages where key = $1

-- name: versions_of_model
-- What a model has published, the newest first.
select v.id, v.number, v.run_id, v.attempt, v.address, v.sha256, v.figures, v.created_at, b.language,
    coalesce(v.id = m.published_version_id, false) as serving
from model_versions v join custom_models m on m.id = v.custom_model_id join base_languages b on b.id = v.base_language_id
where v.custom_model_id = $1
order by v.number desc

-- name: serve_version
-- Put a published version (back) into use.
update custom_models m set published_version_id = v.id, last_modified = db_now()
from model_versions v
where m.id = $1 and v.custom_model_id = m.id and v.number = $2 and m.deleted_at is null
returning v.id
