-- name: create_webhook
-- Where an organization's events go from now on; its secret follows in the same transaction.
insert into webhooks (organization_id, url) values ($1, $2) returning id, url, created_at

-- name: keep_secret
-- A webhook's secret, encrypted: it is bound to the id, so the row is there first.
update webhooks set sealed_secret = $2, secret = null where id = $1 and disabled_at is null

-- name: secrets_in_clear
-- Secrets that a release before encryption wrote.
select id, organization_id, secret from webhooks where secret is not null order by id limit $1 for update skip locked

-- name: secrets_of_older_keys
-- Secrets that another key than the newest ($1) encrypted, of webhooks after one ($2).
select id, organization_id, sealed_secret from webhooks
where id > $2 and sealed_secret is not null and substring(sealed_secret from 2 for 8) <> $1
order by id limit $3 for update skip locked

-- name: secrets_of_unknown_keys
-- How many secrets none of these keys ($1) decrypts.
select count(*) as n from webhooks
where disabled_at is null and (sealed_secret is not null and substring(sealed_secret from 2 for 8) <> all ($1::bytea[]))

-- name: count_webhooks
-- How many an organization has.
select count(*) as n from webhooks where organization_id = $1 and disabled_at is null

-- name: webhooks_of
-- An organization's webhooks.
select id, url, created_at from webhooks where organization_id = $1 and disabled_at is null order by id

-- name: webhook
-- One webhook, for whoever may see it. Null organization: an operator.
select id, organization_id, url, created_at from webhooks
where id = $1 and disabled_at is null and organization_id = coalesce($2::bigint, organization_id)

-- name: disable_webhook
-- No more events go there; what waits will not be sent. A trigger forgets the secret.
with gone as (
    update webhooks set disabled_at = now() where id = $1 and disabled_at is null returning id
), unsent as (
    update webhook_deliveries d set status = 'failed', ended_at = now(), error = 'the webhook was deleted'
    from gone where d.webhook_id = gone.id and d.status = 'waiting'
)
select id from gone

-- name: test_delivery
-- An event that only says hello.
insert into webhook_deliveries (webhook_id, event_id, kind, body) values ($1, $2, 'test', $3::jsonb)
returning id, event_id, kind, status, attempts, answer_status, error, created_at, due_at, ended_at

-- name: deliveries_of
-- The newest deliveries of a webhook.
select id, event_id, kind, status, attempts, answer_status, error, created_at, due_at, ended_at
from webhook_deliveries where webhook_id = $1 order by id desc offset $2 limit $3

-- name: count_deliveries
-- How many deliveries a webhook has had.
select count(*) as n from webhook_deliveries where webhook_id = $1

-- name: claim_deliveries
-- Deliveries that are due, held for as long as one try may take: of each webhook the oldest, so that order is kept
-- while nothing fails; and of each organization one, none where one is under way ($3), so that nobody who has many
-- due holds up the others.
with first as materialized (
    select distinct on (w.organization_id) d.id, d.due_at
    from webhook_deliveries d join webhooks w on w.id = d.webhook_id
    where d.status = 'waiting' and d.due_at <= now() and w.organization_id <> all ($3::bigint[])
        and not exists (select from webhook_deliveries e
            where e.webhook_id = d.webhook_id and e.status = 'waiting' and e.attempts = 0 and e.id < d.id)
    order by w.organization_id, d.due_at, d.id
), due as materialized (
    select d.id
    from webhook_deliveries d join first on first.id = d.id
    where d.status = 'waiting' and d.due_at <= now()
    order by first.due_at
    limit $1
    for update of d skip locked
)
update webhook_deliveries d
set attempts = d.attempts + 1, due_at = now() + $2::double precision * interval '1 second'
from due, webhooks w
where d.id = due.id and w.id = d.webhook_id
returning d.id, d.event_id, d.body, d.attempts, d.webhook_id, w.organization_id, w.url, w.secret, w.sealed_secret

-- name: end_delivery
-- How a try ended: delivered, failed for good, or due again.
update webhook_deliveries
set status = $3, answer_status = $4, error = $5, ended_at = case when $3 = 'waiting' then null else now() end,
    due_at = case when $3 = 'waiting' then now() + $6::double precision * interval '1 second' else due_at end
where id = $1 and attempts = $2 and status = 'waiting'

-- name: forget_deliveries
-- The delivery log goes back thirty days.
delete from webhook_deliveries where id in (
    select id from webhook_deliveries where ended_at < now() - interval '30 days' order by id limit 1000)

-- name: forget_webhooks
-- Deleted webhooks go with the last entry of their delivery log.
delete from webhooks where id in (
    select id from webhooks where disabled_at < now() - interval '30 days' order by disabled_at limit $1)
