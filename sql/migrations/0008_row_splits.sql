-- oldest code: 0.1.0
-- What each row of a model's data was in its trainings: train, dev or test. A row keeps its split when data are added, so
-- that a new version is never measured on what an older one was trained on.

create table row_splits (
    custom_model_id bigint not null references custom_models (id),
    recording bytea not null check (length(recording) = 32), -- SHA-256 of the file
    start_ms bigint not null check (start_ms >= 0),
    split text not null check (split in ('train', 'dev', 'test')),
    primary key (custom_model_id, recording, start_ms)
);
