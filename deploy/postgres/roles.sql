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
-- The schema's owner (training_migrator, or any role of yours) runs migrations and the operator's commands.

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
        -- What an earlier version of this file granted and this one does not is taken back.
        execute format('revoke all on all tables in schema public from %I', name);
        execute format('revoke all on all sequences in schema public from %I', name);
        execute format('grant usage on schema public to %I', name);
    end loop;
end
$$;
revoke create on schema public from public;

-- Both programs look at the schema before they start.
grant select on schema_migrations to training_worker, training_api, training_reader;

-- The worker moves runs and writes what came of them. It makes no model, no organization, reads no key, and deletes
-- nothing but outbox rows that were told and keys of content that is gone.
grant select, update on organizations, base_languages, custom_models, training_data, organization_counts to training_worker;
grant insert on organization_counts to training_worker;
grant select, update on model_order to training_worker;
grant select, insert, update on training_runs, workers, step_outputs to training_worker;
grant select, insert on run_transitions, model_versions to training_worker;
grant select, insert, delete on run_checkpoints to training_worker;
grant select, insert, update, delete on outbox to training_worker;
grant delete on step_outputs to training_worker;
-- Events for webhooks are queued by a trigger; the signing secrets stay out of the worker's sight.
grant select (id, organization_id, disabled_at) on webhooks to training_worker;
grant select (webhook_id, event_id), insert (webhook_id, event_id, kind, body) on webhook_deliveries to training_worker;

-- The API keeps models, data, keys and webhooks. It queues and cancels runs; it claims none and renews no lease:
-- guarded by the statements it has, since a lease is a column of the row it must be able to cancel.
grant select, update on organizations, base_languages to training_api;
grant select, insert, update on custom_models, training_runs, organization_counts, api_keys to training_api;
grant select, insert, update, delete on model_order, training_data, manifest_names, uploads, removals, idempotency_keys, webhooks,
    webhook_deliveries to training_api;
grant select, insert on run_transitions, outbox to training_api;
-- Entries of the audit trail are added: the database itself writes down when and by which login. They end by one function.
grant select on audit_log to training_api;
grant insert (api_key_id, organization_id, action, custom_model_id, run_id, detail, address, request_id, os_user, host, command)
    on audit_log to training_api, training_worker; -- the worker's login: commands that are typed in its container
grant execute on function forget_audit_entries(integer, integer) to training_api;
grant select on model_versions, run_checkpoints, quotas, workers to training_api;
grant select, delete on step_outputs to training_api; -- with the data that they were made from
grant usage on sequence language_ids to training_api;

-- Dashboards and autoscalers look at runs; never at keys, secrets or customers' data.
grant select on training_runs, run_transitions, run_checkpoints, organizations, base_languages, custom_models,
    model_versions, workers, outbox to training_reader;

commit;
