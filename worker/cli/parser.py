"""The words of the command line, and where each one is done."""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from worker import __version__
from worker.cli import catalogue, doctor, entries, keys, letters, runs, serve, transcribe
from worker.cli.show import misfit
from worker.cli.trail import Command, Touches, Touching, audited
from worker.cli.values import name
from worker.errors import WorkerError
from worker.hardening import forbid_inspection
from worker.log import configure_log, redacted, secrets_of
from worker.settings import read_settings


def parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    top = argparse.ArgumentParser(prog="python -m worker", description="Trains custom speech recognition models.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, command: Command, purpose: str, touching: Touching) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=purpose, description=purpose)
        added.set_defaults(do=command, touches=touching)
        added.add_argument("--json", action="store_true", help="answer in JSON")
        return added

    add("run", serve.run, "work: take messages in, train, until SIGTERM", Touches.NOTHING)
    add("api", serve.api, "serve the HTTP API and the console", Touches.NOTHING)
    add("migrate", serve.migrate, "bring the database's schema up to this version", Touches.NOTHING)
    add("doctor", doctor.doctor, "look at everything a worker needs and say how to mend what is wrong", Touches.NOTHING)

    add_organization = add(
        "organization-add", catalogue.add_organization, "add a customer, or change one", Touches.CHANGES
    )
    add_organization.add_argument("name", type=name)
    add_organization.add_argument("--id", type=int)
    add_organization.add_argument("--max-running", type=int, help="most runs at once")
    add_base = add(
        "base-language-add",
        catalogue.add_base_language,
        "add a base language, or change it for runs to come",
        Touches.CHANGES,
    )
    add_base.add_argument("key")
    add_base.add_argument("--name", type=name, help="default: the key")
    add_base.add_argument(
        "--weights",
        required=True,
        help="a folder, a hub id such as openai/whisper-tiny.en, or offline:whisper-tiny.en",
    )
    add_base.add_argument(
        "--revision",
        help="commit, branch or tag of a hub id; default: the commit that this base language has, else today's",
    )
    add_base.add_argument(
        "--language", help="as Whisper spells it, such as de or yue; default: en where the weights know nothing else"
    )
    add_base.add_argument("--recipe", default="whisper")
    add_base.add_argument(
        "--general-set",
        type=Path,
        help="a .jsonl manifest of ordinary speech: what is marked test measures forgetting (it takes 10 recordings and"
        " 100 words), the rest protects from it",
    )
    add_base.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a hyper-parameter's default"
    )
    add_model = add("model-add", catalogue.add_model, "add a custom model", Touches.CHANGES)
    add_model.add_argument("name", type=name)
    add_model.add_argument("--key", help="default: made from the name")
    add_model.add_argument("--organization", type=int, required=True)
    add_model.add_argument("--base", required=True, help="key of the base language")
    versions = add(
        "versions",
        catalogue.versions,
        "list what a model has published; --serve puts one back into use",
        lambda options: Touches.SHOWS if options.serve is None else Touches.CHANGES,
    )
    versions.add_argument("model", help="key or id")
    versions.add_argument("--serve", type=int, metavar="NUMBER")
    writing = add(
        "transcribe",
        transcribe.transcribe,
        "write down recordings with a model: its version in use, else its base",
        Touches.SHOWS,
    )
    writing.add_argument("model", help="key or id")
    writing.add_argument("audio", nargs="+", type=Path, help="recordings of any length")
    which = writing.add_mutually_exclusive_group()
    which.add_argument("--version", type=int, metavar="NUMBER", dest="version", help="another published version")
    which.add_argument("--base", action="store_true", help="the base, to compare")
    writing.add_argument("--language", help="default: the base's")
    importing = add(
        "import", catalogue.import_data, "add recordings to a model: a .jsonl manifest, or a folder", Touches.CHANGES
    )
    importing.add_argument("manifest", type=Path)
    importing.add_argument("--model", required=True, help="key or id")

    request = add(
        "request-run", runs.request_run, "ask for a training run, as any producer would: by a message", Touches.CHANGES
    )
    request.add_argument("model", help="key or id")
    request.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a hyper-parameter of this run"
    )
    request.add_argument("--priority", type=int, default=0, help="-100 to 100, within the organization")
    listing = add("runs", runs.list_runs, "list runs, or tell all about one", Touches.SHOWS)
    listing.add_argument("run", nargs="?", help="a run's id")
    listing.add_argument("--model", help="key or id")
    listing.add_argument("--status", type=int, action="append", choices=range(1, 6))
    listing.add_argument("--most", type=int, default=25)
    cancel = add("cancel", runs.cancel, "cancel a run", Touches.CHANGES)
    cancel.add_argument("run", help="a run's id")
    add("workers", runs.list_workers, "list workers", Touches.NOTHING).add_argument("--all", action="store_true")
    add("drain", runs.drain, "ask one worker to hand its runs over and end", Touches.CHANGES).add_argument("worker")

    add_key = add("key-add", keys.add_key, "make an API key; it is shown once", Touches.CHANGES)
    add_key.add_argument("name", type=name)
    add_key.add_argument("--organization", type=int, help="not with the role operator")
    add_key.add_argument("--role", choices=("reader", "member", "owner", "operator"), default="member")
    add_key.add_argument("--days", type=float, help="valid so long; default: until it is revoked")
    rotate = add("key-rotate", keys.rotate_key, "put a new API key in an old one's place", Touches.CHANGES)
    rotate.add_argument("id", type=int)
    rotate.add_argument("--overlap-s", type=float, default=3600, help="the old one stays valid so long")
    add("key-revoke", keys.revoke_key, "end an API key now", Touches.CHANGES).add_argument("id", type=int)
    add("keys", keys.list_keys, "list API keys", Touches.SHOWS).add_argument("--organization", type=int)
    quota = add(
        "quota", keys.set_quota, "limits of one organization; what is left out follows the settings", Touches.CHANGES
    )
    quota.add_argument("organization", type=int)
    quota.add_argument("--models", type=int)
    quota.add_argument("--hours", type=float, help="of stored audio")
    quota.add_argument("--waiting", type=int, help="runs")
    quota.add_argument("--bytes", type=int, help="of training data, unfinished uploads included")
    quota.add_argument("--files", type=int, help="of training data")
    quota.add_argument("--uploads", type=int, help="unfinished ones")
    quota.add_argument("--manifest-names", type=int, help="recordings that manifests name")
    quota.add_argument("--changes", type=int, help="requests a day that make or change something")

    trail = add(
        "audit", entries.show_audit, "who did what, from where: list the newest entries, or export all", Touches.SHOWS
    )
    trail.add_argument("--since", type=entries.moment, help="a date, a time with zone, or so long ago: 90m, 12h, 7d")
    trail.add_argument("--until", type=entries.moment, help="likewise; before this")
    trail.add_argument("--organization", type=int)
    trail.add_argument("--action", help="such as read_log, refused, import")
    trail.add_argument("--key", type=int, metavar="ID", help="an API key's id")
    trail.add_argument("--most", type=int, default=50, help="of the newest; --export has no such limit")
    trail.add_argument("--export", action="store_true", help="every entry as a line of JSON, the oldest first")

    dead = add(
        "dead-letters",
        letters.dead_letters,
        "list, replay or discard messages that could not be taken in",
        lambda options: Touches.SHOWS if options.action == "list" else Touches.CHANGES,
    )
    dead.add_argument("action", nargs="?", choices=("list", "replay", "discard"), default="list")
    dead.add_argument("--id", action="append", metavar="MESSAGE_ID", help="only these; default: all")
    dead.add_argument("--most", type=int, default=100)
    return top


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - absent where the platform has none
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def main(arguments: list[str] | None = None) -> int:
    """Do what was typed; the exit code."""
    forbid_inspection()  # whatever is started by a command runs as the same user, and must not read its secrets
    options = parser().parse_args(arguments)
    try:
        settings = read_settings()
    except ValidationError as error:
        return misfit(error)
    os.umask(settings.mask)
    configure_log(settings.log_level, secrets=secrets_of(settings))
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(audited(settings, options))
    except WorkerError as error:
        print(redacted(f"{type(error).__name__}: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
