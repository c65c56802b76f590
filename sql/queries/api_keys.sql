-- name: key_by_digest
-- Whose key has this digest, while it is valid.
select id, organization_id, role, name, sha256, expires_at
from api_keys where sha256 = $1 and revoked_at is null and (expires_at is null or expires_at > now())

-- name: valid_digests
-- The newest valid keys: none of them is refused for another's wrong keys.
select sha256 from api_keys where revoked_at is null and (expires_at is null or expires_at > now())
order by id desc limit $1

-- name: create_key
-- A new key; only its digest is kept.
insert into api_keys (organization_id, role, name, sha256, prefix, expires_at) values ($1, $2, $3, $4, $5, $6)
returning id, created_at

-- name: revoke_key
-- A key that ends, now or at a time; one that has ended stays as it is.
update api_keys set revoked_at = case when $2::timestamptz is null then now() else revoked_at end,
    expires_at = case when $2::timestamptz is null then expires_at else least($2, expires_at) end
where id = $1 and revoked_at is null
returning id, organization_id, role, name, expires_at

-- name: list_keys
-- Keys for an operator's eyes; null organization: all.
select id, organization_id, role, name, prefix, created_at, expires_at, revoked_at
from api_keys
where $1::bigint is null or organization_id = $1
order by id

-- name: organization_exists
-- Is there such an organization?
select id from organizations where id = $1

-- name: take_turn
-- Only one request of an Idempotency-Key at a time; false: another one is being worked on.
select pg_try_advisory_xact_lock(1905, hashtext($1)) as mine

-- name: earlier_answer
-- The answer already given to this key.
select body_sha256, status, media_type, answer from idempotency_keys
where api_key_id = $1 and method = $2 and path = $3 and key = $4 and created_at > now() - interval '24 hours'

-- name: keep_answer
-- The answer, beside its effect; an expired one gives way.
insert into idempotency_keys as i (api_key_id, method, path, key, body_sha256, status, media_type, answer)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict (api_key_id, method, path, key) do update set body_sha256 = excluded.body_sha256, status = excluded.status,
    media_type = excluded.media_type, answer = excluded.answer, created_at = now()
