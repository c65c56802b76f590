-- Least privilege in the database: who may do what. Run by the owner of the schema after `python -m worker migrate`,
-- and again after every upgrade; running it twice changes nothing.
--
--   psql -v ON_ERROR_STOP=1 "$ADMIN_URL" -f deploy/postgres/roles.sql
--
-- Not a migration: roles belong to the whole server, not to one database; managed services make them in their own
-- way; and a migration must not need the right to make roles. The roles made here cannot log in: give each program a
-- login of its own that is a member of one of them:
--
--   create role worker_1 login password '…' in role training_worker;
--
-- The schema's owner (training_migrator, or any role of yours; it needs no superuser) runs migrations and the operator's
-- commands: API keys, quotas, organizations and base languages are made and changed by it alone.
--
-- tests/deploy/test_roles.py compares every right of every role with what it is meant to be, column by column: a table
-- or column without a decision fails there.

-- One transaction: what workers may do is never less than before while it runs.
begin;

do $$
declare
    name text;
begin
    foreach name in array array['training_worker', 'training_api', 'training_reader'] loop
        if not exists (select from pg_roles where rolname = name) then
            execute format('create role %I nologin', name);
        end if;
        -- What an earlier version of this file granted and this one does not is taken back, columns included.
        execute format('revoke all on all tables in schema public from %I', name);
        execute format('revoke all on all sequences in schema public from %I', name);
        execute format('grant usage on schema public to %I', name);
    end loop;
end
$$;
revoke create on schema public from public;

-- Both programs look at the schema before they start.
grant select on schema_migrations to training_worker, training_api, training_reader;

-- `select … for update` needs the right to change one column at least. Where a program only locks, it is the column
-- that nothing is decided from.

-- The worker moves runs and writes what came of them. It makes no model and no organization, sets no cap, chooses no
-- weights, reads no key, and deletes nothing but outbox rows that were told and keys of content that is gone.
grant select, update (running, waiting, last_claimed_at) on organizations to training_worker;
grant select, update (running) on base_languages to training_worker;
grant select, update (training_status, last_modified, published_version_id, data_items, data_bytes, data_ms, usable_ms)
    on custom_models to training_worker;
grant select, update (verdict, reason_code, reason, duration_s, used_s) on training_data to training_worker;
grant select, insert, update on organization_counts to training_worker;
grant select, update (last_modified, training_status) on model_order to training_worker;
grant select, insert, update on training_runs to training_worker; -- a trigger keeps whose run it is and its inputs
grant select, insert, update (seen_at, stopped_at) on workers to training_worker;
grant select, insert, update (split) on row_splits to training_worker;
grant select, insert on run_transitions, model_versions to training_worker;
grant select, insert, update (created_at), delete on run_checkpoints to training_worker;
grant select, insert, update, delete on step_outputs to training_worker;
grant select, insert, update (created_at), delete on outbox to training_worker;
-- Events for webhooks are queued by a trigger; the signing secrets stay out of the worker's sight.
grant select (id, organization_id, disabled_at) on webhooks to training_worker;
grant select (webhook_id, event_id), insert (webhook_id, event_id, kind, body) on webhook_deliveries to training_worker;

-- The API keeps models and data. It queues runs and cancels them; it claims none, renews no lease and writes no result:
-- the columns for that are out of its reach. It looks keys up and makes none: stealing its login makes nobody an operator.
grant select, update (running, waiting, last_claimed_at) on organizations to training_api;
grant select, update (running) on base_languages to training_api;
grant select, insert (key, name, organization_id, base_language_id),
    update (name, base_language_id, last_modified, training_status, published_version_id, data_items, data_bytes, data_ms,
        usable_ms, data_names, upload_count, upload_bytes, deleted_at, purged_at, cleared_at)
    on custom_models to training_api;
grant select, insert, update on organization_counts to training_api;
grant select,
    insert (id, custom_model_id, organization_id, base_language_id, requested_at, traceparent, wanted_parameters, priority,
        wait_until),
    update (status, sequence, waited_s, ended_at, cancel_requested_at, failure_class, failure_code, failure_reason,
        report_address, erased_at)
    on training_runs to training_api;
grant select, insert on run_transitions, outbox to training_api;
grant select (id, organization_id, role, name, sha256, expires_at, revoked_at) on api_keys to training_api;
grant select, insert, update, delete on model_order, training_data, manifest_names, uploads, removals, idempotency_keys,
    webhook_deliveries to training_api;
-- A webhook's address never changes, and its secret is written encrypted. What an earlier release wrote in clear may be
-- read and emptied.
grant select, insert (organization_id, url), update (secret, sealed_secret, disabled_at), delete on webhooks to training_api;
-- Entries of the audit trail are added: the database itself writes down when and by which login. They end by one function.
grant select on audit_log to training_api;
grant insert (api_key_id, organization_id, action, custom_model_id, run_id, detail, address, request_id, os_user, host, command)
    on audit_log to training_api, training_worker; -- the worker's login: commands that are typed in its container
grant execute on function forget_audit_entries(integer, integer) to training_api;
grant select on model_versions, quotas, workers to training_api;
grant select, delete on step_outputs, run_checkpoints to training_api; -- with the data that they were made from
grant select, insert, delete on erasures to training_api;
-- What a customer has deleted leaves versions and the audit trail too, which the API may not change itself.
grant execute on function clear_deleted_model(bigint), clear_removed_files(bigint, text[], timestamptz),
    forget_untrained_models(integer) to training_api;
grant usage on sequence language_ids to training_api;

-- Dashboards and autoscalers look at where runs stand; never at keys, secrets or what customers said, named or uploaded:
-- figures hold sentences, reports and reasons hold the names of files, and models may be named after people.
grant select (id, max_running, running, waiting, last_claimed_at, created_at) on organizations to training_reader;
grant select (id, key, recipe, version, language, max_running, running, created_at) on base_languages to training_reader;
grant select (id, organization_id, base_language_id, last_modified, training_status, published_version_id, created_at,
    deleted_at, data_items, data_bytes, data_ms, usable_ms, purged_at) on custom_models to training_reader;
grant select (id, custom_model_id, organization_id, base_language_id, status, sequence, attempt, failures, hand_overs, priority,
    requested_at, created_at, due_at, waited_s, wait_until, ran_s, started_at, claimed_at, ended_at, cancel_requested_at, worker_id,
    lease_expires_at, phase, percent, eta_s, progress_at, failure_class, failure_code, gate, tidied_at)
    on training_runs to training_reader;
grant select (id, custom_model_id, number, run_id, attempt, base_language_id, created_at) on model_versions to training_reader;
grant select (run_id, attempt, steps_done, bytes, recipe_version, created_at) on run_checkpoints to training_reader;
grant select on run_transitions, workers, outbox to training_reader;

commit;
