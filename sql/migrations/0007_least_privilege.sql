-- oldest code: 0.1.0
-- Secrets of webhooks are encrypted with a key that the database never sees, and end with their webhook.
--
-- The old column stays for one release: processes of the release before this one write it while this one rolls out, and
-- the API encrypts what it finds there. A later release drops it.

alter table webhooks
    alter column secret drop not null,
    -- AES-256-GCM, bound to the webhook's and the organization's id: see worker/encryption.py.
    add column sealed_secret bytea check (length(sealed_secret) between 32 and 1000);
comment on column webhooks.secret is 'emptied: the secret lies in sealed_secret';

-- A webhook that ends takes its secret with it, whichever release ended it.
create function forget_webhook_secret() returns trigger
language plpgsql
as $$
begin
    new.secret := null;
    new.sealed_secret := null;
    return new;
end
$$;
create trigger forget_webhook_secret before update on webhooks
    for each row when (new.disabled_at is not null) execute function forget_webhook_secret();
update webhooks set secret = null where disabled_at is not null;

-- What is still to be encrypted, and only that.
create index webhooks_in_clear on webhooks (id) where secret is not null;

-- Answers kept for a repeat of the same request held the secret as well.
update idempotency_keys
set answer = convert_to(jsonb_set(convert_from(answer, 'UTF8')::jsonb, '{secret}', 'null')::text, 'UTF8')
where method = 'POST' and status = 201 and path like '%/webhooks';
