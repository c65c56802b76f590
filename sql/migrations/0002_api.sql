-- oldest code: 0.1.0
-- What the HTTP API needs beside runs: keys, answers kept for repeats, an audit trail, quotas, uploads in parts,
-- webhooks, and the counts that make lists and polls one index read.
--
-- Lock order continues: …, custom_models, organization_counts. Triggers take the last two, always sorted. Registering and
-- claiming in one transaction goes through it twice; the organization's lock keeps movers apart, and an upload into a
-- model whose run is claimed in that very moment, by a request of the same organization, may be ended as a deadlock.

-- Case-insensitive search. The best collation this server has decides; the result is stored, so it never changes by itself.
do $$
declare
    chosen text;
begin
    select c.collname into chosen
    from pg_collation c
    where c.collname in ('und-x-icu', 'pg_c_utf8', 'C.utf8') and c.collencoding in (-1, pg_char_to_encoding(getdatabaseencoding()))
    order by array_position(array['und-x-icu', 'pg_c_utf8', 'C.utf8'], c.collname::text)
    limit 1;
    execute format(
        'create function folded(text) returns text language sql immutable strict parallel safe as $f$ select lower($1 collate %I) $f$',
        coalesce(chosen, 'default'));
end
$$;

alter table custom_models
    -- Base languages keep their key for good; with it here, a list sorts and a poll answers without a join.
    add column base_language_key text,
    -- What `q` looks in. A name holds no line feed, so nothing matches across the two.
    add column search text generated always as (folded(name || chr(10) || key)) stored,
    add column data_items integer not null default 0 check (data_items >= 0),
    add column data_bytes bigint not null default 0 check (data_bytes >= 0),
    add column data_ms bigint not null default 0 check (data_ms >= 0),
    -- Milliseconds of audio that the next run may use: paired, not rejected.
    add column usable_ms bigint not null default 0 check (usable_ms >= 0),
    -- Set when the bytes of a deleted model are gone.
    add column purged_at timestamptz;

update custom_models m set base_language_key = b.key from base_languages b where b.id = m.base_language_id;
alter table custom_models alter column base_language_key set not null;

create function name_base_language() returns trigger
language plpgsql
as $$
begin
    select b.key into new.base_language_key from base_languages b where b.id = new.base_language_id;
    if not found then
        raise exception 'no base language %', new.base_language_id using errcode = 'foreign_key_violation';
    end if;
    return new;
end
$$;
create trigger name_base_language before insert or update of base_language_id on custom_models
    for each row execute function name_base_language();

-- A base language's key is its public name, copied into models.
create function keep_base_language_key() returns trigger
language plpgsql
as $$
begin
    raise exception 'the key of a base language never changes' using errcode = 'check_violation';
end
$$;
create trigger keep_base_language_key before update on base_languages
    for each row when (new.key <> old.key) execute function keep_base_language_key();

-- One walk per sort: the page's order, ties by id. Text is ordered by code point, the same on every server.
create index models_by_id on custom_models (organization_id, id) include (search) where deleted_at is null;
create index models_by_name on custom_models (organization_id, name collate "C", id) where deleted_at is null;
create index models_by_key on custom_models (organization_id, key collate "C") where deleted_at is null;
create index models_by_base on custom_models (organization_id, base_language_key collate "C", id) where deleted_at is null;
create index models_by_base_down on custom_models (organization_id, base_language_key collate "C" desc, id) where deleted_at is null;
create index models_to_purge on custom_models (deleted_at) where deleted_at is not null and purged_at is null;

-- The two orders that every move of a run changes lie in a table of their own: no index of custom_models holds what a
-- move writes, so its rows change in place, and a move costs three index entries instead of ten.
create table model_order (
    custom_model_id bigint primary key references custom_models,
    organization_id bigint not null,
    last_modified timestamptz not null,
    training_status smallint
);
create index models_by_last_modified on model_order (organization_id, last_modified, custom_model_id);
create index models_by_status on model_order (organization_id, training_status nulls last, custom_model_id);
create index models_by_status_down on model_order (organization_id, training_status desc nulls last, custom_model_id);
insert into model_order
    select id, organization_id, last_modified, training_status from custom_models where deleted_at is null;

-- Exact totals without counting, and a number that grows with every change a list could show.
create table organization_counts (
    organization_id bigint primary key references organizations,
    models bigint not null default 0 check (models >= 0),
    stored_bytes bigint not null default 0 check (stored_bytes >= 0),
    stored_ms bigint not null default 0 check (stored_ms >= 0),
    revision bigint not null default 0
) with (fillfactor = 50);

insert into organization_counts (organization_id) select id from organizations;
update organization_counts c set models = n.models
    from (select organization_id, count(*) as models from custom_models where deleted_at is null group by 1) n
    where n.organization_id = c.organization_id;

create function follow_models() returns trigger
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
    update organization_counts c
        set models = c.models + d.models, stored_bytes = c.stored_bytes + d.bytes, stored_ms = c.stored_ms + d.ms,
            revision = c.revision + 1
        from (
            select n.organization_id, sum((n.deleted_at is null)::int - (o.deleted_at is null)::int) as models,
                sum(case when n.deleted_at is null then n.data_bytes else 0 end
                    - case when o.deleted_at is null then o.data_bytes else 0 end) as bytes,
                sum(case when n.deleted_at is null then n.data_ms else 0 end
                    - case when o.deleted_at is null then o.data_ms else 0 end) as ms
            from new_models n join old_models o using (id) group by 1) d
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
create trigger follow_models_in after insert on custom_models
    referencing new table as new_models for each statement execute function follow_models();
create trigger follow_models_on after update on custom_models
    referencing old table as old_models new table as new_models for each statement execute function follow_models();

-- Milliseconds of one data item that a run may use.
create function usable_ms(d training_data) returns bigint
language sql immutable
as $$
    select case when d.kind = 'audio' and d.verdict in ('waiting_for_run', 'accepted')
        then round(coalesce(d.duration_s, 0) * 1000)::bigint else 0 end
$$;

create function count_data(models bigint[], items integer[], bytes bigint[], ms bigint[], usable bigint[]) returns void
language plpgsql
as $$
begin
    perform from custom_models m where m.id = any (models) order by m.id for no key update;
    update custom_models m
        set data_items = m.data_items + d.items, data_bytes = m.data_bytes + d.bytes, data_ms = m.data_ms + d.ms,
            usable_ms = m.usable_ms + d.usable
        from unnest(models, items, bytes, ms, usable) as d (id, items, bytes, ms, usable)
        where m.id = d.id and (d.items, d.bytes, d.ms, d.usable) <> (0, 0, 0, 0);
end
$$;

create function data_changed() returns trigger
language plpgsql
as $$
declare
    d record;
begin
    -- The three cases differ in the sign only; transition tables cannot be empty where the trigger has none.
    if tg_op = 'INSERT' then
        select array_agg(id) as ids, array_agg(items) as items, array_agg(bytes) as bytes, array_agg(ms) as ms, array_agg(usable) as usable into d
        from (select n.custom_model_id as id, count(*)::int as items, sum(n.bytes)::bigint as bytes,
                sum(round(coalesce(n.duration_s, 0) * 1000))::bigint as ms, sum(usable_ms(n))::bigint as usable
            from new_data n group by 1) x;
    elsif tg_op = 'DELETE' then
        select array_agg(id) as ids, array_agg(items) as items, array_agg(bytes) as bytes, array_agg(ms) as ms, array_agg(usable) as usable into d
        from (select o.custom_model_id as id, -count(*)::int as items, -sum(o.bytes)::bigint as bytes,
                -sum(round(coalesce(o.duration_s, 0) * 1000))::bigint as ms, -sum(usable_ms(o))::bigint as usable
            from old_data o group by 1) x;
    else
        select array_agg(id) as ids, array_agg(items) as items, array_agg(bytes) as bytes, array_agg(ms) as ms, array_agg(usable) as usable into d
        from (select n.custom_model_id as id, 0 as items, sum(n.bytes - o.bytes)::bigint as bytes,
                sum(round(coalesce(n.duration_s, 0) * 1000) - round(coalesce(o.duration_s, 0) * 1000))::bigint as ms,
                sum(usable_ms(n) - usable_ms(o))::bigint as usable
            from new_data n join old_data o using (id) group by 1) x;
    end if;
    if d.ids is not null then
        perform count_data(d.ids, d.items, d.bytes, d.ms, d.usable);
    end if;
    return null;
end
$$;
create trigger data_inserted after insert on training_data
    referencing new table as new_data for each statement execute function data_changed();
create trigger data_updated after update on training_data
    referencing old table as old_data new table as new_data for each statement execute function data_changed();
create trigger data_deleted after delete on training_data
    referencing old table as old_data for each statement execute function data_changed();

update custom_models m
    set data_items = d.items, data_bytes = d.bytes, data_ms = d.ms, usable_ms = d.usable
    from (select t.custom_model_id, count(*)::int as items, sum(t.bytes)::bigint as bytes,
            sum(round(coalesce(t.duration_s, 0) * 1000))::bigint as ms, sum(usable_ms(t))::bigint as usable
        from training_data t group by 1) d
    where m.id = d.custom_model_id;

create index training_data_page on training_data (custom_model_id, id);

-- Audio that a manifest names: it needs no transcript of its own stem.
create table manifest_names (
    data_id bigint not null references training_data on delete cascade,
    custom_model_id bigint not null,
    audio_name text not null,
    primary key (data_id, audio_name)
);
create index manifest_names_of_model on manifest_names (custom_model_id, audio_name);

-- Large files that arrive in parts; the parts lie in storage under the upload's id until the last one is there.
create table uploads (
    id uuid primary key,
    custom_model_id bigint not null,
    organization_id bigint not null,
    name text not null,
    split text check (split in ('train', 'dev', 'test')),
    bytes bigint not null check (bytes > 0),
    received bigint not null default 0,
    -- Storage keys of the parts, in order.
    parts text[] not null default '{}',
    created_at timestamptz not null default now(),
    changed_at timestamptz not null default now(),
    foreign key (custom_model_id, organization_id) references custom_models (id, organization_id),
    check (received between 0 and bytes)
);
create index uploads_of_model on uploads (custom_model_id);
create index uploads_by_age on uploads (changed_at);

-- Bytes nobody refers to any more; they go when no active run of the model could still read them.
create table removals (
    id bigint generated always as identity primary key,
    address text not null,
    custom_model_id bigint not null references custom_models,
    created_at timestamptz not null default now()
);
create index removals_of_address on removals (address);

create table api_keys (
    id bigint generated always as identity primary key,
    -- Null for an operator's key, which is for all organizations.
    organization_id bigint references organizations,
    role text not null check (role in ('reader', 'member', 'owner', 'operator')),
    name text not null check (name <> ''),
    -- Only the digest: a stolen table opens nothing.
    sha256 bytea not null unique check (length(sha256) = 32),
    -- The beginning of the key, by which a person recognizes it.
    prefix text not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    check ((role = 'operator') = (organization_id is null))
);
create index api_keys_of_organization on api_keys (organization_id, id);

-- Every API process keeps the keys it has seen, and forgets them when told so.
create function tell_key_change() returns trigger
language plpgsql
as $$
begin
    perform pg_notify('api_keys', encode(old.sha256, 'hex'));
    return null;
end
$$;
create trigger tell_key_change after update or delete on api_keys for each row execute function tell_key_change();

-- Null: the settings' default.
create table quotas (
    organization_id bigint primary key references organizations,
    max_models integer check (max_models >= 0),
    max_stored_hours double precision check (max_stored_hours >= 0),
    max_waiting integer check (max_waiting >= 0)
);

-- Answers already given, for a repeat with the same Idempotency-Key; written with the effect, in its transaction.
create table idempotency_keys (
    api_key_id bigint not null references api_keys,
    method text not null,
    path text not null,
    key text not null,
    body_sha256 bytea not null,
    status smallint not null,
    media_type text,
    answer bytea not null,
    created_at timestamptz not null default now(),
    primary key (api_key_id, method, path, key)
);
create index idempotency_keys_by_age on idempotency_keys (created_at);

create table audit_log (
    id bigint generated always as identity primary key,
    at timestamptz not null default now(),
    -- Null where a command line did it.
    api_key_id bigint references api_keys,
    organization_id bigint,
    action text not null,
    custom_model_id bigint,
    run_id uuid,
    detail jsonb not null default '{}'
);
create index audit_log_of_organization on audit_log (organization_id, id);

create table webhooks (
    id bigint generated always as identity primary key,
    organization_id bigint not null references organizations,
    url text not null,
    -- Needed to sign, so it cannot be a digest; shown once.
    secret text not null,
    created_at timestamptz not null default now(),
    disabled_at timestamptz
);
create index webhooks_of_organization on webhooks (organization_id) where disabled_at is null;

create table webhook_deliveries (
    id bigint generated always as identity primary key,
    webhook_id bigint not null references webhooks on delete cascade,
    -- The transition told, or a fresh id for a test.
    event_id uuid not null,
    kind text not null check (kind in ('event', 'test')),
    body jsonb not null,
    status text not null default 'waiting' check (status in ('waiting', 'delivered', 'failed')),
    attempts integer not null default 0 check (attempts >= 0),
    due_at timestamptz not null default now(),
    answer_status smallint,
    error text,
    created_at timestamptz not null default now(),
    ended_at timestamptz,
    unique (webhook_id, event_id)
) with (fillfactor = 80);
create index webhook_deliveries_due on webhook_deliveries (due_at) where status = 'waiting';
create index webhook_deliveries_of_webhook on webhook_deliveries (webhook_id, id);

-- What goes into the outbox for the broker goes to the organization's webhooks, in the same transaction.
create function tell_webhooks() returns trigger
language plpgsql
as $$
begin
    if not exists (select from webhooks w where w.disabled_at is null) then
        return null;
    end if;
    insert into webhook_deliveries (webhook_id, event_id, kind, body)
    select w.id, t.id, 'event', jsonb_build_object(
            'type', 'training.run.' || (array['cancelled', 'queued', 'running', 'succeeded', 'failed'])[t.to_status] || '.v1',
            'event_id', t.id, 'run_id', t.run_id, 'sequence', t.sequence, 'attempt', t.attempt,
            'from', t.from_status, 'to', t.to_status, 'at', to_jsonb(t.at), 'custom_model_id', r.custom_model_id,
            'organization_id', r.organization_id, 'reason_code', t.reason_code)
    from new_rows o
    join run_transitions t on t.run_id = o.run_id and t.sequence = o.sequence
    join training_runs r on r.id = o.run_id
    join webhooks w on w.organization_id = r.organization_id and w.disabled_at is null
    where o.kind = 'event'
    order by o.id, w.id
    on conflict (webhook_id, event_id) do nothing;
    return null;
end
$$;
create trigger tell_webhooks after insert on outbox
    referencing new table as new_rows for each statement execute function tell_webhooks();
