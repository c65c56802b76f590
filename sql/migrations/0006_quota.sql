-- oldest code: 0.1.0
-- What an organization makes us keep is counted where it lies, so that quotas hold whoever races; and what a customer
-- deletes is gone from every row.
--
-- Lock order as before: custom_models, then organization_counts. A transaction that writes removals has locked its
-- models already, or locks none afterwards.

alter table organization_counts
    add column stored_files bigint not null default 0 check (stored_files >= 0),
    -- Rows of manifest_names.
    add column manifest_names bigint not null default 0 check (manifest_names >= 0),
    -- Unfinished uploads, and the bytes that they announced.
    add column uploads bigint not null default 0 check (uploads >= 0),
    add column upload_bytes bigint not null default 0 check (upload_bytes >= 0),
    -- Bytes that a request is storing, and bytes that were deleted and still lie in storage.
    add column arriving_bytes bigint not null default 0 check (arriving_bytes >= 0),
    add column leaving_bytes bigint not null default 0 check (leaving_bytes >= 0),
    -- Requests of this day that made something.
    add column changes bigint not null default 0 check (changes >= 0),
    add column changes_on date not null default current_date;

alter table custom_models
    add column data_names bigint not null default 0 check (data_names >= 0),
    add column upload_count integer not null default 0 check (upload_count >= 0),
    add column upload_bytes bigint not null default 0 check (upload_bytes >= 0),
    -- Set by the second purge, an hour after purged_at: no late writer is left then, and no row holds the customer's words.
    add column cleared_at timestamptz;
drop index models_to_purge;
create index models_to_purge on custom_models (deleted_at) where deleted_at is not null and cleared_at is null;
create index models_to_forget on custom_models (cleared_at) where cleared_at is not null;

alter table quotas
    add column max_stored_bytes bigint check (max_stored_bytes >= 0),
    add column max_files bigint check (max_files >= 0),
    add column max_uploads integer check (max_uploads >= 0),
    add column max_manifest_names bigint check (max_manifest_names >= 0),
    add column max_changes bigint check (max_changes >= 0);

alter table removals
    add column bytes bigint not null default 0 check (bytes >= 0),
    -- A request is storing these bytes; a row of its own will own them, or they go when the row is due.
    add column arriving boolean not null default false,
    -- Whoever was storing bytes under this address has committed by then.
    add column due_at timestamptz not null default now() + interval '1 hour';
create index removals_due on removals (due_at, id);
create index removals_of_model on removals (custom_model_id);

-- Who owns an address: asked for every removal, and for every recording that a worker has cached.
create index training_data_address on training_data (address);

-- Seconds of a recording that the last run used; duration_s is the recording's own length.
alter table training_data add column used_s double precision check (used_s >= 0);

create or replace function usable_ms(d training_data) returns bigint
language sql immutable
as $$
    select case when d.kind = 'audio' and d.verdict in ('waiting_for_run', 'accepted')
        then round(coalesce(case when d.verdict = 'accepted' then d.used_s end, d.duration_s, 0) * 1000)::bigint else 0 end
$$;

create or replace function follow_models() returns trigger
language plpgsql
as $$
begin
    if tg_op = 'INSERT' then
        insert into organization_counts as c (organization_id, models, stored_bytes, stored_ms, revision)
        select n.organization_id, count(*), sum(n.data_bytes), sum(n.data_ms), 1
        from new_models n where n.deleted_at is null group by 1 order by 1
        on conflict (organization_id) do update set models = c.models + excluded.models, revision = c.revision + 1,
            stored_bytes = c.stored_bytes + excluded.stored_bytes, stored_ms = c.stored_ms + excluded.stored_ms;
        insert into model_order
            select n.id, n.organization_id, n.last_modified, n.training_status from new_models n where n.deleted_at is null;
        return null;
    end if;
    perform from organization_counts c
        where c.organization_id = any (array(select distinct n.organization_id from new_models n))
        order by c.organization_id for no key update;
    -- A deleted model counts as nothing but bytes that are leaving.
    update organization_counts c
        set models = c.models + d.models, stored_bytes = c.stored_bytes + d.bytes, stored_ms = c.stored_ms + d.ms,
            stored_files = c.stored_files + d.files, manifest_names = c.manifest_names + d.names,
            uploads = c.uploads + d.uploads, upload_bytes = c.upload_bytes + d.upload_bytes,
            leaving_bytes = c.leaving_bytes + d.leaving, revision = c.revision + 1
        from (
            select x.organization_id, sum(x.sign * x.live) as models, sum(x.sign * x.live * x.data_bytes) as bytes,
                sum(x.sign * x.live * x.data_ms) as ms, sum(x.sign * x.live * x.data_items) as files,
                sum(x.sign * x.live * x.data_names) as names, sum(x.sign * x.live * x.upload_count) as uploads,
                sum(x.sign * x.live * x.upload_bytes) as upload_bytes, sum(x.sign * (1 - x.live) * x.data_bytes) as leaving
            from (
                select 1 as sign, (n.deleted_at is null)::int as live, n.* from new_models n
                union all
                select -1, (o.deleted_at is null)::int, o.* from old_models o) x
            group by 1) d
        where c.organization_id = d.organization_id;
    update model_order m set last_modified = n.last_modified, training_status = n.training_status
        from new_models n join old_models o using (id)
        where m.custom_model_id = any (array(select id from new_models)) and m.custom_model_id = n.id
            and (n.last_modified, n.training_status) is distinct from (o.last_modified, o.training_status);
    -- Looked at first: the worker, which may not delete here, moves runs of models that are deleted already.
    if exists (select from new_models n join old_models o using (id) where n.deleted_at is not null and o.deleted_at is null) then
        delete from model_order m using new_models n where m.custom_model_id = n.id and n.deleted_at is not null;
    end if;
    return null;
end
$$;

-- Manifest names and unfinished uploads are counted on their model, as training data is.
create function count_beside_data(models bigint[], names bigint[], uploads integer[], bytes bigint[]) returns void
language plpgsql
as $$
begin
    if models is null then
        return;
    end if;
    perform from custom_models m where m.id = any (models) order by m.id for no key update;
    update custom_models m
        set data_names = m.data_names + d.names, upload_count = m.upload_count + d.uploads, upload_bytes = m.upload_bytes + d.bytes
        from unnest(models, names, uploads, bytes) as d (id, names, uploads, bytes)
        where m.id = d.id;
end
$$;

create function manifest_names_changed() returns trigger
language plpgsql
as $$
begin
    if tg_op = 'INSERT' then
        perform count_beside_data(array_agg(x.id), array_agg(x.n), array_agg(0), array_agg(0::bigint))
        from (select custom_model_id as id, count(*) as n from new_names group by 1) x;
    else
        perform count_beside_data(array_agg(x.id), array_agg(-x.n), array_agg(0), array_agg(0::bigint))
        from (select custom_model_id as id, count(*) as n from old_names group by 1) x;
    end if;
    return null;
end
$$;
create trigger manifest_names_inserted after insert on manifest_names
    referencing new table as new_names for each statement execute function manifest_names_changed();
create trigger manifest_names_deleted after delete on manifest_names
    referencing old table as old_names for each statement execute function manifest_names_changed();

create function uploads_changed() returns trigger
language plpgsql
as $$
begin
    if tg_op = 'INSERT' then
        perform count_beside_data(array_agg(x.id), array_agg(0::bigint), array_agg(x.n), array_agg(x.bytes))
        from (select custom_model_id as id, count(*)::int as n, sum(bytes)::bigint as bytes from new_uploads group by 1) x;
    else
        perform count_beside_data(array_agg(x.id), array_agg(0::bigint), array_agg(-x.n), array_agg(-x.bytes))
        from (select custom_model_id as id, count(*)::int as n, sum(bytes)::bigint as bytes from old_uploads group by 1) x;
    end if;
    return null;
end
$$;
create trigger uploads_inserted after insert on uploads
    referencing new table as new_uploads for each statement execute function uploads_changed();
create trigger uploads_deleted after delete on uploads
    referencing old table as old_uploads for each statement execute function uploads_changed();

create function removals_changed() returns trigger
language plpgsql
as $$
begin
    if tg_op = 'INSERT' then
        perform from organization_counts c
            where c.organization_id = any (array(
                select distinct m.organization_id from new_removals r join custom_models m on m.id = r.custom_model_id where r.bytes > 0))
            order by c.organization_id for no key update;
        update organization_counts c set arriving_bytes = c.arriving_bytes + d.arriving, leaving_bytes = c.leaving_bytes + d.leaving
        from (
            select m.organization_id, sum(case when r.arriving then r.bytes else 0 end) as arriving,
                sum(case when r.arriving then 0 else r.bytes end) as leaving
            from new_removals r join custom_models m on m.id = r.custom_model_id where r.bytes > 0 group by 1) d
        where c.organization_id = d.organization_id;
    else
        perform from organization_counts c
            where c.organization_id = any (array(
                select distinct m.organization_id from old_removals r join custom_models m on m.id = r.custom_model_id where r.bytes > 0))
            order by c.organization_id for no key update;
        update organization_counts c set arriving_bytes = c.arriving_bytes - d.arriving, leaving_bytes = c.leaving_bytes - d.leaving
        from (
            select m.organization_id, sum(case when r.arriving then r.bytes else 0 end) as arriving,
                sum(case when r.arriving then 0 else r.bytes end) as leaving
            from old_removals r join custom_models m on m.id = r.custom_model_id where r.bytes > 0 group by 1) d
        where c.organization_id = d.organization_id;
    end if;
    return null;
end
$$;
create trigger removals_inserted after insert on removals
    referencing new table as new_removals for each statement execute function removals_changed();
create trigger removals_deleted after delete on removals
    referencing old table as old_removals for each statement execute function removals_changed();

-- What is there already.
insert into organization_counts (organization_id) select id from organizations on conflict do nothing;
update custom_models m set data_names = n.names
    from (select custom_model_id, count(*) as names from manifest_names group by 1) n where m.id = n.custom_model_id;
update custom_models m set upload_count = u.n, upload_bytes = u.bytes
    from (select custom_model_id, count(*)::int as n, sum(bytes)::bigint as bytes from uploads group by 1) u
    where m.id = u.custom_model_id;
-- The updates above have told the triggers of names and uploads; files and leaving bytes they could not know.
update organization_counts c set stored_files = d.files, leaving_bytes = d.leaving
    from (
        select organization_id, coalesce(sum(data_items) filter (where deleted_at is null), 0) as files,
            coalesce(sum(data_bytes) filter (where deleted_at is not null), 0) as leaving
        from custom_models group by 1) d
    where c.organization_id = d.organization_id;

-- Files that a customer removed or replaced one by one: what runs made of them, and said about them, goes as well.
create table erasures (
    id bigint generated always as identity primary key,
    custom_model_id bigint not null references custom_models,
    name text not null,
    created_at timestamptz not null default db_now()
);
create index erasures_of_model on erasures (custom_model_id, id);
-- Set when all that a run stored but its log and its version is gone, with a file that it read.
alter table training_runs add column erased_at timestamptz;

-- Which model a kept answer tells of: its address names it, or it is the model that was made.
alter table idempotency_keys add column custom_model_id bigint;
create function name_model_of_answer() returns trigger
language plpgsql
as $$
begin
    new.custom_model_id := case
        when new.path ~ '/custom_models/[0-9]{1,18}(/|$)' then substring(new.path from '/custom_models/([0-9]{1,18})')::bigint
        when new.method = 'POST' and new.status = 201 and new.path like '%/custom_models'
            then (convert_from(new.answer, 'UTF8')::jsonb ->> 'id')::bigint
        end;
    return new;
end
$$;
create trigger name_model_of_answer before insert or update on idempotency_keys
    for each row execute function name_model_of_answer();
update idempotency_keys set custom_model_id = null;
create index idempotency_keys_of_model on idempotency_keys (custom_model_id) where custom_model_id is not null;

create index audit_log_of_model on audit_log (custom_model_id) where custom_model_id is not null;
create index webhooks_disabled on webhooks (disabled_at) where disabled_at is not null;

-- An audit entry without the names of files and models. Who, when, what and which id stay.
create function without_names(detail jsonb) returns jsonb
language sql immutable
as $$ select detail - array['name', 'names'] $$;

-- Takes the customer's words out of every row of a deleted model. A function with its owner's rights: the API may not
-- change audit entries and versions, and here it cannot change those of a model that exists.
create function clear_deleted_model(model_id bigint) returns void
language plpgsql security definer
set search_path = public, pg_temp
as $$
begin
    perform from custom_models m where m.id = model_id and m.deleted_at is not null
        and not exists (select from training_runs a where a.custom_model_id = m.id and a.ended_at is null);
    if not found then
        raise exception 'model % is not deleted, or a run of it is active', model_id using errcode = 'check_violation';
    end if;
    update training_runs r
        set figures = case when r.figures is not null then '{}'::jsonb end, data_report = null, live = null, failure_detail = null,
            failure_reason = case when r.failure_reason is not null then 'The model was deleted.' end,
            wanted_parameters = '{}', inputs = r.inputs || '{"parameters": {}}', log_address = null, report_address = null
        where r.custom_model_id = model_id and r.ended_at is not null;
    update model_versions v set figures = '{}' where v.custom_model_id = model_id;
    update audit_log a set detail = without_names(a.detail), command = null
        where a.custom_model_id = model_id and (a.detail ?| array['name', 'names'] or a.command is not null);
    delete from row_splits s where s.custom_model_id = model_id;
    update custom_models m set name = 'deleted', key = 'deleted-' || gen_random_uuid() where m.id = model_id and m.name <> 'deleted';
end
$$;
revoke execute on function clear_deleted_model(bigint) from public;

-- Ends the rows of models that were cleared a week ago and never trained, at most so many; how many. What made and
-- deleted models in a loop leaves nothing behind; a model that trained keeps its row, as its runs do.
create function forget_untrained_models(most integer) returns bigint
language sql security definer
set search_path = public, pg_temp
as $$
    with gone as (
        delete from custom_models where id in (
            select m.id from custom_models m
            where m.cleared_at < now() - interval '7 days'
                and not exists (select from training_runs r where r.custom_model_id = m.id)
                and not exists (select from removals r where r.custom_model_id = m.id)
                and not exists (select from erasures e where e.custom_model_id = m.id)
                and not exists (select from training_data d where d.custom_model_id = m.id)
                and not exists (select from uploads u where u.custom_model_id = m.id)
            order by m.cleared_at limit least(greatest(most, 0), 10000))
        returning 1)
    select count(*) from gone
$$;
revoke execute on function forget_untrained_models(integer) from public;

-- Takes what runs said about some files of a model, up to a moment, out of its rows.
create function clear_removed_files(model_id bigint, names text[], until timestamptz) returns void
language plpgsql security definer
set search_path = public, pg_temp
as $$
begin
    update training_runs r
        set figures = without_files(r.figures, 'examples', names),
            data_report = without_files(r.data_report, 'rejections', names)
        where r.custom_model_id = model_id and r.ended_at is not null and r.created_at <= until
            and (r.figures is distinct from without_files(r.figures, 'examples', names)
                or r.data_report is distinct from without_files(r.data_report, 'rejections', names));
    update model_versions v set figures = without_files(v.figures, 'examples', names)
        where v.custom_model_id = model_id
            and exists (select from training_runs r where r.id = v.run_id and r.created_at <= until)
            and v.figures is distinct from without_files(v.figures, 'examples', names);
end
$$;
revoke execute on function clear_removed_files(bigint, text[], timestamptz) from public;

-- A document without the entries of one of its lists that name one of these files: as their file, the file and a line,
-- or inside their reason.
create function without_files(document jsonb, list text, names text[]) returns jsonb
language sql immutable
as $$
    select case when jsonb_typeof(document -> list) = 'array' then jsonb_set(document, array[list], coalesce((
            select jsonb_agg(e.entry order by e.n)
            from jsonb_array_elements(document -> list) with ordinality as e (entry, n)
            where not exists (
                select from unnest(names) as f (name)
                where e.entry ->> 'file' = f.name or starts_with(coalesce(e.entry ->> 'file', ''), f.name || ', line ')
                    or position(f.name in coalesce(e.entry ->> 'reason', '')) > 0)), '[]'::jsonb))
        else document end
$$;
