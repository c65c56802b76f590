"""Dead letters: what could not be taken in, why, and what to do with it."""

import argparse
from dataclasses import asdict

from worker.cli.show import rows, said
from worker.intake import dead_letters as dead
from worker.settings import Settings


async def dead_letters(settings: Settings, options: argparse.Namespace) -> int:
    """List, replay or discard."""
    url = settings.amqp_url.get_secret_value()
    ids = set(options.id) if options.id else None
    if options.action == "list":
        found = [asdict(letter) for letter in await dead.letters(url, options.most)]
        columns = [name for name in ("message_id", "reason", "detail", "first_seen") if not found or name in found[0]]
        rows("dead letters", found, columns, json_wanted=options.json)
        return 0
    act = dead.replay if options.action == "replay" else dead.discard
    count = await act(url, ids, options.most)
    said(f"{options.action}: {count} messages", json_wanted=options.json, action=options.action, messages=count)
    return 0
