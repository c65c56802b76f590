-- oldest code: 0.1.0
-- The audit trail says who did something and from where, and is kept for a limited time.

-- address: the client of a request. request_id: X-Request-Id of its answer, as in the log; of a command: both its rows.
-- os_user, host, command: who typed a command, where, and its arguments; for operators, never shown by the API.
alter table audit_log
    add column address text,
    add column request_id text,
    add column os_user text,
    add column host text,
    add column command jsonb,
    add column database_role text not null default current_user;
create index audit_log_by_time on audit_log (at);

-- A program cannot say when it wrote an entry or under which login: a stolen login signs what it forges.
create function sign_audit_entry() returns trigger
language plpgsql
as $$
begin
    new.at := now();
    new.database_role := current_user;
    return new;
end
$$;
create trigger sign_audit_entry before insert on audit_log for each row execute function sign_audit_entry();

-- The one way in which a program's login ends entries: the oldest ones, none younger than 30 days, at most 10,000 a call.
-- What it removed is an entry of its own.
create function forget_audit_entries(days integer, most integer) returns bigint
language plpgsql security definer
set search_path = pg_catalog, public, pg_temp
as $$
declare
    ends timestamptz := now() - greatest(days, 30) * interval '1 day';
    removed bigint;
    newest timestamptz;
begin
    with old as (
        select id from public.audit_log where at < ends order by at limit least(greatest(most, 0), 10000)
        for update skip locked -- several API processes share the work
    ), gone as (
        delete from public.audit_log a using old where a.id = old.id returning a.at
    )
    select count(*), max(gone.at) into removed, newest from gone;
    if removed > 0 then
        insert into public.audit_log (action, detail)
        values ('forget_audit_entries', jsonb_build_object('entries', removed, 'until', newest, 'days', greatest(days, 30),
            'login', session_user));
    end if;
    return removed;
end
$$;
revoke execute on function forget_audit_entries(integer, integer) from public;

-- A new key is told of, too: API processes keep a list of the valid ones, so that a flood of wrong keys cannot keep one out.
create or replace function tell_key_change() returns trigger
language plpgsql
as $$
begin
    perform pg_notify('api_keys', encode(coalesce(old.sha256, new.sha256), 'hex'));
    return null;
end
$$;
drop trigger tell_key_change on api_keys;
create trigger tell_key_change after insert or update or delete on api_keys for each row execute function tell_key_change();
