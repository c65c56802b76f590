"""What is not the attacker's: keys, roles, other organizations' things."""

from __future__ import annotations

import re
import uuid

from tests.attack.attacker import Attacker, kind
from tests.attack.victim import recording
from tests.attack.wire import Client, multipart


@kind("8", refuses=True)
async def wrong_keys(attacker: Attacker) -> None:
    """Guessed keys at a rate."""

    async def guess(n: int) -> None:
        wrong = Client(
            attacker.port,
            attacker.anonymous.source,
            f"sk_{attacker.chance.getrandbits(256):064x}"[: 30 + n % 40],
            keep=0,
        )
        answer = await wrong.ask("GET", "/caller")
        attacker.anonymous.note("guessed key", answer)

    await attacker.repeated(guess, 300, 10)


@kind("8", refuses=True)
async def no_key(attacker: Attacker) -> None:
    """No key, half a key, another scheme, two headers, a key in the query."""
    odd = [
        {},
        {"Authorization": "Basic YTpi"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer " + "x" * 8_000},
        {"authorization": "Bearer \xff\xfe"},
    ]
    models = attacker.victim_models
    await attacker.repeated(
        lambda n: attacker.anonymous.ask(
            "GET", f"/custom_models/{models[n % len(models)]}?key=guess", headers=odd[n % 5]
        ),
        100,
        10,
    )


def filled(path: str, model: object, run: object, data: object) -> str:
    """A path of the API's own document with ids in it."""
    known = {"id": model, "run_id": run, "data_id": data, "upload_id": run, "number": 1, "webhook_id": 1}
    return re.sub(r"\{(\w+)\}", lambda found: str(known.get(found[1], 1)), path)


@kind("8", refuses=True)
async def others_things(attacker: Attacker) -> None:
    """Every endpoint with the victim's ids, by every role."""
    body = {"name": "mine now", "language_id": attacker.language, "organization_id": attacker.organization}
    asks = []
    for method, path in attacker.paths:
        if "{id}" not in path:
            continue
        for client in (attacker.owner, attacker.member, attacker.reader):
            for model in attacker.victim_models[:2]:
                run = attacker.victim_runs[0] if attacker.victim_runs else uuid.uuid4()
                data = attacker.victim_data[0] if attacker.victim_data else 1
                where = filled(path, model, run, data)
                sent = body if method in ("PUT", "POST") and not path.endswith("/data") else None
                asks.append(lambda c=client, m=method, w=where, b=sent: c.ask(m, w, b, timeout_s=5))
    attacker.chance.shuffle(asks)
    await attacker.many(asks[:140], 6)


@kind("8", refuses=True)
async def others_parts_of_own_model(attacker: Attacker) -> None:
    """The attacker's own model with the victim's runs and files."""
    model = await attacker.model()
    asks = []
    for run in attacker.victim_runs[:5]:
        asks += [(method, f"/custom_models/{model}/runs/{run}{tail}") for method, tail in
                 (("GET", ""), ("GET", "/log"), ("GET", "/log?tail=1000"), ("GET", "/report"), ("GET", "/report?view=summary"), ("POST", "/cancel"))]  # fmt: skip
    asks += [("DELETE", f"/custom_models/{model}/data/{data}") for data in attacker.victim_data[:10]]
    asks += [
        ("POST", f"/custom_models/{model}/versions/1/serve"),
        ("GET", "/audit_log?before=999999"),
        ("GET", "/webhooks/1/deliveries"),
    ]
    await attacker.many([lambda m=method, p=path: attacker.owner.ask(m, p, timeout_s=5) for method, path in asks], 6)


@kind("8", refuses=True)
async def anothers_organization(attacker: Attacker) -> None:
    """Models made for, and moved to, an organization that is not the key's own."""
    model = await attacker.model()

    async def move(n: int) -> None:
        body = {"name": "moved", "language_id": attacker.language, "organization_id": n}
        await attacker.owner.ask("POST", "/custom_models", body)
        await attacker.owner.ask("PUT", f"/custom_models/{model}", body)

    await attacker.many([lambda n=n: move(n) for n in range(1, 20) if n != attacker.organization], 4)


@kind("8", refuses=True)
async def a_readers_writes(attacker: Attacker) -> None:
    """Everything that changes something, with a key that may only look; and an owner's things with a member's."""
    model = await attacker.model()
    asks = []
    for method, path in attacker.paths:
        if method == "GET":
            continue
        where = filled(path, model, uuid.uuid4(), 1)
        asks.append(lambda m=method, w=where: attacker.reader.ask(m, w, {}, timeout_s=5))
    asks += [lambda p=path: attacker.member.ask("GET", p, timeout_s=5) for path in ("/audit_log", "/webhooks")] * 5
    await attacker.many(asks, 6)


@kind("8", refuses=True)
async def addresses_that_are_none(attacker: Attacker) -> None:
    """Paths out of the house: traversal, other prefixes, odd ids, methods nobody has."""
    paths = ["/custom_models/../../../etc/passwd", "/custom_models/%2e%2e%2f", "/custom_models/0", "/custom_models/-1", "/custom_models/99999999999999999999",
             "/custom_models/1;drop", "/..%2f..%2fapi", "/custom_models/\u0661", "/metrics", "/debug", "/.env", "/console/../app.py"]  # fmt: skip
    methods = ["GET", "PUT", "TRACE", "PROPFIND", "DELETE"]
    await attacker.repeated(
        lambda n: attacker.owner.ask(
            methods[n % 5], paths[n % 12].encode("ascii", "ignore").decode() + f"?n={n}", timeout_s=5
        ),
        60,
        6,
    )
    await attacker.repeated(
        lambda n: attacker.anonymous.ask(
            "GET", paths[n % 12].encode("ascii", "ignore").decode(), timeout_s=5, root="/console"
        ),
        24,
        6,
    )


@kind("7")
async def own_reports_and_logs(attacker: Attacker) -> None:
    """Reads logs, reports and versions of the attacker's own runs in every way: nothing of anybody else may be in them."""
    model = attacker.kept.get("read_model")
    if model is None:
        model = attacker.kept["read_model"] = await attacker.trainable()
        body, headers = multipart([("more.txt", b"please train more"), ("more.wav", recording(2.0, 9))])
        await attacker.ready("POST", f"/custom_models/{model}/data", body, headers)
    run = await attacker.train(model)
    if run is None:
        return
    path = f"/custom_models/{model}/runs/{run}"
    ranges = ["bytes=0-", "bytes=-1", "bytes=0-0,5-9", "bytes=99999999999-", "bytes=5-1"]
    await attacker.repeated(lambda n: attacker.owner.ask("GET", f"{path}/log", headers={"Range": ranges[n % 5]}), 20, 4)
    for tail in ("/report", "/report?view=summary", "/log?tail=10000"):
        await attacker.owner.ask("GET", path + tail)
    for other in ("/versions", "/data?limit=100", "/runs?limit=100"):
        await attacker.owner.ask("GET", f"/custom_models/{model}{other}")
