-- Lists of models. A name such as by_{name,key}_{asc,desc} stands for four queries; {1} and {2} in their text are the
-- alternatives that a name took. Each must walk an index of its own order (tests/api/test_plans.py), so none can be one
-- query with an order by chosen at run time.

-- let shown: id, key, name, last_modified, organization_id, usable_ms, base_language_id, base_language_key, training_status
-- let shown_and_data: {shown}, data_items, published_version_id

-- name: by_{id}_{asc,desc}
-- A page of an organization's models with its exact total and revision: a walk along one index to the page, then its rows.
select c.models as total, c.revision, m.*
from organization_counts c
left join lateral (
    select {shown} from custom_models
    where id = any (array(
        select id from custom_models where organization_id = $1 and deleted_at is null
        order by {1} {2} offset $2 limit $3))
) m on true
where c.organization_id = $1
order by m.{1} {2}

-- name: by_{name,key,base_language_key}_{asc,desc}
-- The same, by a text: by the bytes of its letters, as the index has them.
select c.models as total, c.revision, m.*
from organization_counts c
left join lateral (
    select {shown} from custom_models
    where id = any (array(
        select id from custom_models where organization_id = $1 and deleted_at is null
        order by {1} collate "C" {2}, id offset $2 limit $3))
) m on true
where c.organization_id = $1
order by m.{1} collate "C" {2}, m.id

-- name: by_{last_modified}_{asc,desc}
-- The same, by a time that changes often: its order is kept in a narrow table beside the models.
select c.models as total, c.revision, m.*
from organization_counts c
left join lateral (
    select {shown} from custom_models
    where id = any (array(
        select custom_model_id from model_order where organization_id = $1
        order by {1} {2}, custom_model_id offset $2 limit $3))
) m on true
where c.organization_id = $1
order by m.{1} {2}, m.id

-- name: by_{training_status}_{asc,desc}
-- The same, by status; models without a run come last, whatever the direction.
select c.models as total, c.revision, m.*
from organization_counts c
left join lateral (
    select {shown} from custom_models
    where id = any (array(
        select custom_model_id from model_order where organization_id = $1
        order by {1} {2} nulls last, custom_model_id offset $2 limit $3))
) m on true
where c.organization_id = $1
order by m.{1} {2} nulls last, m.id

-- name: found_by_{id}_{asc,desc}
-- A page of those whose name or key holds a text; for texts that many have, so that the walk ends soon.
select {shown_and_data}
from custom_models
where organization_id = $1 and deleted_at is null and search like $4
order by {1} {2} offset $2 limit $3

-- name: found_by_{name,key,base_language_key}_{asc,desc}
-- The same, by a text.
select {shown_and_data}
from custom_models
where organization_id = $1 and deleted_at is null and search like $4
order by {1} collate "C" {2}, id offset $2 limit $3

-- name: found_by_{last_modified}_{asc,desc}
-- The same, by time.
select m.*
from model_order o
cross join lateral (
    select {shown_and_data} from custom_models where id = o.custom_model_id and search like $4 offset 0
) m
where o.organization_id = $1
order by o.{1} {2}, o.custom_model_id offset $2 limit $3

-- name: found_by_{training_status}_{asc,desc}
-- The same, by status.
select m.*
from model_order o
cross join lateral (
    select {shown_and_data} from custom_models where id = o.custom_model_id and search like $4 offset 0
) m
where o.organization_id = $1
order by o.{1} {2} nulls last, o.custom_model_id offset $2 limit $3

-- name: these_{asc,desc}
-- A page of some models by any field: for searches that few match.
select {shown_and_data}
from custom_models
where id = any ($1::bigint[]) and deleted_at is null
order by case $4::text when 'id' then id when 'training_status' then training_status end {1} nulls last,
    case when $4 = 'last_modified' then last_modified end {1},
    case $4 when 'name' then name when 'key' then key when 'base_language_key' then base_language_key end collate "C" {1},
    id
offset $2 limit $3

-- name: everybody_{asc,desc}
-- A page of all organizations' models by any field, an operator's view, not made to be fast.
select {shown_and_data}
from custom_models
where deleted_at is null and search like $4
order by case $3::text when 'id' then id when 'training_status' then training_status end {1} nulls last,
    case when $3 = 'last_modified' then last_modified end {1},
    case $3 when 'name' then name when 'key' then key when 'base_language_key' then base_language_key end collate "C" {1},
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
