"""Postgres, and nothing else: the only importer of asyncpg."""
