-- One login for each program of compose.yaml: psql -v password=… -f roles.sql -f logins.sql
select format('create role %I login', name) from unnest(array['worker', 'api', 'grafana_reader']) as name
    where not exists (select from pg_roles where rolname = name) \gexec
alter role worker password :'password';
alter role api password :'password';
alter role grafana_reader password :'password';
grant training_worker to worker;
grant training_api to api;
grant training_reader to grafana_reader;
