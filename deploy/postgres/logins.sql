-- The logins of compose.yaml's programs, and an owner of the database that is no superuser. Run by a superuser: Postgres'
-- image does so when it makes the database, before `migrate`; running it again sets the passwords anew, for instance
-- after a change of secrets. Passwords come from files: psql -v secrets=/run/secrets -f logins.sql
\set ON_ERROR_STOP on
\if :{?secrets}
\else
    \set secrets /run/secrets
\endif
\set migrator_password `cat :'secrets'/postgres_migrator`
\set worker_password `cat :'secrets'/postgres_worker`
\set api_password `cat :'secrets'/postgres_api`
\set reader_password `cat :'secrets'/postgres_grafana_reader`

select format('create role %I', name)
    from unnest(array['training_migrator', 'training_worker', 'training_api', 'training_reader', 'worker', 'api', 'grafana_reader']) as name
    where not exists (select from pg_roles where rolname = name) \gexec

alter role training_migrator login nosuperuser nocreatedb nocreaterole nobypassrls password :'migrator_password';
alter role worker login nosuperuser nocreatedb nocreaterole nobypassrls password :'worker_password';
alter role api login nosuperuser nocreatedb nocreaterole nobypassrls password :'api_password';
alter role grafana_reader login nosuperuser nocreatedb nocreaterole nobypassrls password :'reader_password';
grant training_worker to worker;
grant training_api to api;
grant training_reader to grafana_reader;

-- Its owner makes the schema and gives the rights in it (roles.sql).
select format('alter database %I owner to training_migrator', current_database()) \gexec
