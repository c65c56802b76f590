-- oldest code: 0.1.0
-- Workers that a run has lost in a row without getting further, while it was a suspect (worker/domain/lost_workers.py): in the same
-- phase, with no later checkpoint in between. Getting further begins the count again. Those that it lost as a bystander
-- are counted for the books alone: no number of them ends it.
alter table training_runs
    add column bystander_losses integer not null default 0 check (bystander_losses >= 0),
    add column worker_losses integer not null default 0 check (worker_losses >= 0),
    add column lost_in_phase text check (lost_in_phase in ('load', 'prepare', 'train', 'evaluate', 'publish')),
    add column lost_at_steps integer check (lost_at_steps >= 0),
    add constraint losses_have_a_place
        check (worker_losses = 0 or (lost_in_phase is not null and lost_at_steps is not null));
