"""API keys and quotas by command. A key is printed once; only its digest is kept."""

import argparse
from dataclasses import fields

from worker.api import keys
from worker.cli.opened import stores
from worker.cli.show import complain, rows, said
from worker.errors import DatabaseRefused
from worker.settings import Settings
from worker.store import api as store
from worker.store.api_keys import KeyStore, audit

_COLUMNS = ("id", "organization_id", "role", "name", "prefix", "created_at", "expires_at", "revoked_at")


async def add_key(settings: Settings, options: argparse.Namespace) -> int:
    """Make a key for an organization, or an operator's."""
    async with stores(settings) as opened:
        made = KeyStore(opened.database)
        try:
            new = await keys.create(made, options.organization, options.role, options.name, valid_days=options.days)
        except (ValueError, DatabaseRefused) as error:
            return complain(f"not made: {error}")
    said(f"key {new.id}, shown this once: {new.secret}", json_wanted=options.json, id=new.id, key=new.secret)
    return 0


async def rotate_key(settings: Settings, options: argparse.Namespace) -> int:
    """Put a new key in an old one's place; both are valid for a while."""
    async with stores(settings) as opened:
        try:
            new = await keys.rotate(KeyStore(opened.database), options.id, overlap_s=options.overlap_s)
        except keys.NoSuchKey:
            return complain(f"no valid key {options.id}")
    said(f"key {new.id}, shown this once: {new.secret}", json_wanted=options.json, id=new.id, key=new.secret)
    return 0


async def revoke_key(settings: Settings, options: argparse.Namespace) -> int:
    """End a key now, in every API process."""
    async with stores(settings) as opened:
        try:
            await keys.revoke(KeyStore(opened.database), options.id)
        except keys.NoSuchKey:
            return complain(f"no valid key {options.id}")
    said(f"key {options.id} is revoked", json_wanted=options.json, id=options.id)
    return 0


async def list_keys(settings: Settings, options: argparse.Namespace) -> int:
    """Keys, by the beginnings that people recognize."""
    async with stores(settings) as opened:
        found = await KeyStore(opened.database).list(options.organization)
    rows("keys", [dict(row) for row in found], _COLUMNS, json_wanted=options.json)
    return 0


async def set_quota(settings: Settings, options: argparse.Namespace) -> int:
    """Give an organization limits of its own; what is left out follows the settings."""
    limits = {field.name: getattr(options, field.name) for field in fields(store.Limits)}
    async with stores(settings) as opened:
        try:
            async with opened.database.transaction() as connection:
                await store.set_quota(connection, options.organization, store.Limits(**limits))
                await audit(connection, None, options.organization, "set_quota", detail=limits)
        except DatabaseRefused as error:
            return complain(f"not set: {error}")
    said(f"quota of organization {options.organization} is set", json_wanted=options.json, **limits)
    return 0
