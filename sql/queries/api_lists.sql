-- name: by_id_asc
-- A page of an organization's models by id, ascending: a walk along one index to the page, then its rows;
-- with the organization's exact total and revision.
select c.models as total, c.revision, m.*
from organization_counts c
left join lateral (
    select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status
    from custom_models
    where id = any (array(
        select id from custom_models where organization_id = $1 and deleted_at is null
        order by id offset $2 limit $3))
) m on true
where c.organization_id = $1
order by m.id

-- name: found_by_id_asc
-- The same, of those whose name or key holds a text; for texts that many have, so that the walk ends soon.
select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status, data_items,
    published_version_id
from custom_models
where organization_id = $1 and deleted_at is null and search like $4
order by id offset $2 limit $3

-- name: by_id_desc
-- A page of an organization's models by id, descending: a walk along one index to the page, then its rows;
-- with the organization's exact total and revision.
select c.models as total, c.revision, m.*
from organization_counts c
left join lateral (
    select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status
    from custom_models
    where id = any (array(
        select id from custom_models where organization_id = $1 and deleted_at is null
        order by id desc offset $2 limit $3))
) m on true
where c.organization_id = $1
order by m.id desc

-- name: found_by_id_desc
-- The same, of those whose name or key holds a text; for texts that many have, so that the walk ends soon.
select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status, data_items,
    published_version_id
from custom_models
where organization_id = $1 and deleted_at is null and search like $4
order by id desc offset $2 limit $3

-- name: by_name_asc
-- A page of an organization's models by name, ascending: a walk along one index to the page, then its rows;
-- with the organization's exact total and revision.
select c.models as total, c.revision, m.*
from organization_counts c
left join lateral (
    select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status
    from custom_models
    where id = any (array(
        select id from custom_models where organization_id = $1 and deleted_at is null
        order by name collate "C", id offset $2 limit $3))
) m on true
where c.organization_id = $1
order by m.name collate "C", m.id

-- name: found_by_name_asc
-- The same, of those whose name or key holds a text; for texts that many have, so that the walk ends soon.
select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status, data_items,
    published_version_id
from custom_models
where organization_id = $1 and deleted_at is null and search like $4
order by name collate "C", id offset $2 limit $3

-- name: by_name_desc
-- A page of an organization's models by name, descending: a walk along one index to the page, then its rows;
-- with the organization's exact total and revision.
select c.models as total, c.revision, m.*
from organization_counts c
left join lateral (
    select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status
    from custom_models
    where id = any (array(
        select id from custom_models where organization_id = $1 and deleted_at is null
        order by name collate "C" desc, id offset $2 limit $3))
) m on true
where c.organization_id = $1
order by m.name collate "C" desc, m.id

-- name: found_by_name_desc
-- The same, of those whose name or key holds a text; for texts that many have, so that the walk ends soon.
select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status, data_items,
    published_version_id
from custom_models
where organization_id = $1 and deleted_at is null and search like $4
order by name collate "C" desc, id offset $2 limit $3

-- name: by_key_asc
-- A page of an organization's models by key, ascending: a walk along one index to the page, then its rows;
-- with the organization's exact total and revision.
select c.models as total, c.revision, m.*
from organization_counts c
left join lateral (
    select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status
    from custom_models
    where id = any (array(
        select id from custom_models where organization_id = $1 and deleted_at is null
        order by key collate "C", id offset $2 limit $3))
) m on true
where c.organization_id = $1
order by m.key collate "C", m.id

-- name: found_by_key_asc
-- The same, of those whose name or key holds a text; for texts that many have, so that the walk ends soon.
select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status, data_items,
    published_version_id
from custom_models
where organization_id = $1 and deleted_at is null and search like $4
order by key collate "C", id offset $2 limit $3

-- name: by_key_desc
-- A page of an organization's models by key, descending: a walk along one index to the page, then its rows;
-- with the organization's exact total and revision.
select c.models as total, c.revision, m.*
from organization_counts c
left join lateral (
    select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status
    from custom_models
    where id = any (array(
        select id from custom_models where organization_id = $1 and deleted_at is null
        order by key collate "C" desc, id offset $2 limit $3))
) m on true
where c.organization_id = $1
order by m.key collate "C" desc, m.id

-- name: found_by_key_desc
-- The same, of those whose name or key holds a text; for texts that many have, so that the walk ends soon.
select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status, data_items,
    published_version_id
from custom_models
where organization_id = $1 and deleted_at is null and search like $4
order by key collate "C" desc, id offset $2 limit $3

-- name: by_last_modified_asc
-- A page of an organization's models by last_modified, ascending: a walk along one index to the page, then its rows;
-- with the organization's exact total and revision.
select c.models as total, c.revision, m.*
from organization_counts c
left join lateral (
    select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status
    from custom_models
    where id = any (array(
        select custom_model_id from model_order where organization_id = $1
        order by last_modified, custom_model_id offset $2 limit $3))
) m on true
where c.organization_id = $1
order by m.last_modified, m.id

-- name: found_by_last_modified_asc
-- The same, of those whose name or key holds a text; for texts that many have, so that the walk ends soon.
select m.*
from model_order o
cross join lateral (
    select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status,
        data_items, published_version_id
    from custom_models
    where id = o.custom_model_id and search like $4
    offset 0
) m
where o.organization_id = $1
order by o.last_modified, o.custom_model_id offset $2 limit $3

-- name: by_last_modified_desc
-- A page of an organization's models by last_modified, descending: a walk along one index to the page, then its rows;
-- with the organization's exact total and revision.
select c.models as total, c.revision, m.*
from organization_counts c
left join lateral (
    select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status
    from custom_models
    where id = any (array(
        select custom_model_id from model_order where organization_id = $1
        order by last_modified desc, custom_model_id offset $2 limit $3))
) m on true
where c.organization_id = $1
order by m.last_modified desc, m.id

-- name: found_by_last_modified_desc
-- The same, of those whose name or key holds a text; for texts that many have, so that the walk ends soon.
select m.*
from model_order o
cross join lateral (
    select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status,
        data_items, published_version_id
    from custom_models
    where id = o.custom_model_id and search like $4
    offset 0
) m
where o.organization_id = $1
order by o.last_modified desc, o.custom_model_id offset $2 limit $3

-- name: by_base_language_key_asc
-- A page of an organization's models by base_language_key, ascending: a walk along one index to the page, then its rows;
-- with the organization's exact total and revision.
select c.models as total, c.revision, m.*
from organization_counts c
left join lateral (
    select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status
    from custom_models
    where id = any (array(
        select id from custom_models where organization_id = $1 and deleted_at is null
        order by base_language_key collate "C", id offset $2 limit $3))
) m on true
where c.organization_id = $1
order by m.base_language_key collate "C", m.id

-- name: found_by_base_language_key_asc
-- The same, of those whose name or key holds a text; for texts that many have, so that the walk ends soon.
select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status, data_items,
    published_version_id
from custom_models
where organization_id = $1 and deleted_at is null and search like $4
order by base_language_key collate "C", id offset $2 limit $3

-- name: by_base_language_key_desc
-- A page of an organization's models by base_language_key, descending: a walk along one index to the page, then its rows;
-- with the organization's exact total and revision.
select c.models as total, c.revision, m.*
from organization_counts c
left join lateral (
    select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status
    from custom_models
    where id = any (array(
        select id from custom_models where organization_id = $1 and deleted_at is null
        order by base_language_key collate "C" desc, id offset $2 limit $3))
) m on true
where c.organization_id = $1
order by m.base_language_key collate "C" desc, m.id

-- name: found_by_base_language_key_desc
-- The same, of those whose name or key holds a text; for texts that many have, so that the walk ends soon.
select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status, data_items,
    published_version_id
from custom_models
where organization_id = $1 and deleted_at is null and search like $4
order by base_language_key collate "C" desc, id offset $2 limit $3

-- name: by_training_status_asc
-- A page of an organization's models by training_status, ascending: a walk along one index to the page, then its rows;
-- with the organization's exact total and revision.
select c.models as total, c.revision, m.*
from organization_counts c
left join lateral (
    select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status
    from custom_models
    where id = any (array(
        select custom_model_id from model_order where organization_id = $1
        order by training_status nulls last, custom_model_id offset $2 limit $3))
) m on true
where c.organization_id = $1
order by m.training_status nulls last, m.id

-- name: found_by_training_status_asc
-- The same, of those whose name or key holds a text; for texts that many have, so that the walk ends soon.
select m.*
from model_order o
cross join lateral (
    select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status,
        data_items, published_version_id
    from custom_models
    where id = o.custom_model_id and search like $4
    offset 0
) m
where o.organization_id = $1
order by o.training_status nulls last, o.custom_model_id offset $2 limit $3

-- name: by_training_status_desc
-- A page of an organization's models by training_status, descending: a walk along one index to the page, then its rows;
-- with the organization's exact total and revision.
select c.models as total, c.revision, m.*
from organization_counts c
left join lateral (
    select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status
    from custom_models
    where id = any (array(
        select custom_model_id from model_order where organization_id = $1
        order by training_status desc nulls last, custom_model_id offset $2 limit $3))
) m on true
where c.organization_id = $1
order by m.training_status desc nulls last, m.id

-- name: found_by_training_status_desc
-- The same, of those whose name or key holds a text; for texts that many have, so that the walk ends soon.
select m.*
from model_order o
cross join lateral (
    select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status,
        data_items, published_version_id
    from custom_models
    where id = o.custom_model_id and search like $4
    offset 0
) m
where o.organization_id = $1
order by o.training_status desc nulls last, o.custom_model_id offset $2 limit $3

-- name: these_asc
-- A page of some models by any field: for searches that few match.
select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status, data_items,
    published_version_id
from custom_models
where id = any ($1::bigint[]) and deleted_at is null
order by case $4::text when 'id' then id when 'training_status' then training_status end asc nulls last,
    case when $4 = 'last_modified' then last_modified end asc,
    case $4 when 'name' then name when 'key' then key when 'base_language_key' then base_language_key end collate "C" asc,
    id
offset $2 limit $3

-- name: everybody_asc
-- A page of all organizations' models by any field, an operator's view, not made to be fast.
select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status, data_items,
    published_version_id
from custom_models
where deleted_at is null and search like $4
order by case $3::text when 'id' then id when 'training_status' then training_status end asc nulls last,
    case when $3 = 'last_modified' then last_modified end asc,
    case $3 when 'name' then name when 'key' then key when 'base_language_key' then base_language_key end collate "C" asc,
    id
offset $1 limit $2

-- name: these_desc
-- A page of some models by any field: for searches that few match.
select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status, data_items,
    published_version_id
from custom_models
where id = any ($1::bigint[]) and deleted_at is null
order by case $4::text when 'id' then id when 'training_status' then training_status end desc nulls last,
    case when $4 = 'last_modified' then last_modified end desc,
    case $4 when 'name' then name when 'key' then key when 'base_language_key' then base_language_key end collate "C" desc,
    id
offset $2 limit $3

-- name: everybody_desc
-- A page of all organizations' models by any field, an operator's view, not made to be fast.
select id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status, data_items,
    published_version_id
from custom_models
where deleted_at is null and search like $4
order by case $3::text when 'id' then id when 'training_status' then training_status end desc nulls last,
    case when $3 = 'last_modified' then last_modified end desc,
    case $3 when 'name' then name when 'key' then key when 'base_language_key' then base_language_key end collate "C" desc,
    id
offset $1 limit $2

-- name: folded
-- A search text as the stored one is folded.
select folded($1) as folded

-- name: find
-- How many of an organization's models hold a text, exactly, and which, where they are few: one index holds all it needs.
select count(*) as total, case when count(*) <= $3::int then array_agg(id) end as ids
from custom_models
where organization_id = $1 and deleted_at is null and search like $2

-- name: everybody_total
-- How many models of all organizations hold a text.
select count(*) as total from custom_models where deleted_at is null and search like $1
