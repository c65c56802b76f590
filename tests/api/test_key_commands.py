"""Keys and quotas by command: made, listed, rotated, revoked; a secret is printed once."""

import argparse
import json

from pydantic import SecretStr

from worker.cli import keys
from worker.cli.parser import parser
from worker.settings import Settings


async def done(capsys, live, command, **options):
    settings = Settings(database_url=SecretStr(live.owner_url))
    code = await command(settings, argparse.Namespace(json=True, **options))
    printed = capsys.readouterr()
    return code, json.loads(printed.out) if printed.out else printed.err


async def test_a_key_made_by_command_opens_the_api_until_it_is_revoked_by_command(live, customer, capsys):
    wanted = {"organization": customer.id, "role": "member", "name": "CI", "days": None}
    code, made = await done(capsys, live, keys.add_key, **wanted)
    assert code == 0
    assert (await live.client(made["key"]).get("/caller")).json()["role"] == "member"
    code, rotated = await done(capsys, live, keys.rotate_key, id=made["id"], overlap_s=3600.0)
    assert code == 0
    code, listed = await done(capsys, live, keys.list_keys, organization=customer.id)
    assert {row["id"] for row in listed} >= {made["id"], rotated["id"]}
    assert rotated["key"] not in json.dumps(listed)
    assert (await done(capsys, live, keys.revoke_key, id=rotated["id"]))[0] == 0
    assert (await done(capsys, live, keys.revoke_key, id=rotated["id"])) == (1, f"no valid key {rotated['id']}\n")
    assert (await done(capsys, live, keys.add_key, **wanted | {"role": "operator"}))[0] == 1
    assert (await done(capsys, live, keys.add_key, **wanted | {"organization": 10**9}))[0] == 1


async def test_a_quota_of_its_own_beats_the_settings(live, customer, capsys):
    typed = parser().parse_args(["quota", str(customer.id), "--models", "1", "--manifest-names", "7"])
    options = {name: value for name, value in vars(typed).items() if name not in {"json", "command"}}
    code, said = await done(capsys, live, keys.set_quota, **options)
    assert (code, said["models"], said["manifest_names"], said["bytes"]) == (0, 1, 7, None)
    await customer.model()
    body = {"name": "x", "language_id": customer.base_id, "organization_id": customer.id}
    assert (await customer.http.post("/custom_models", json=body)).json()["code"] == "quota_exceeded"
