"""Organizations, base languages, custom models and their versions, for the worker and its operators."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from worker.store.database import Database, Record, queries

_Q: Final = queries("models")


@dataclass(frozen=True)
class BaseLanguage:
    """What custom models start from."""

    id: int
    key: str
    name: str
    recipe: str
    weights: str
    version: str
    hyper_parameters: dict[str, Any]
    general_set: str | None
    language: str
    """As Whisper spells it: de, yue."""


class ModelStore:
    """Every statement on models, for the worker and its operators."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_organization(self, organization_id: int | None, name: str, max_running: int | None = None) -> int:
        """A customer, made or changed."""
        row = await self._database.fetch_row(_Q["create_organization"], organization_id, name, max_running)
        assert row is not None
        return int(row["id"])

    async def create_base_language(  # noqa: PLR0913 - a row has that many columns
        self,
        key: str,
        name: str,
        weights: str,
        *,
        recipe: str = "whisper",
        version: str = "1",
        hyper_parameters: dict[str, Any] | None = None,
        general_set: str | None = None,
        language: str = "en",
    ) -> int:
        """A base language, made or changed for runs to come."""
        row = await self._database.fetch_row(
            _Q["create_base_language"],
            key,
            name,
            recipe,
            weights,
            version,
            hyper_parameters or {},
            general_set,
            language,
        )
        assert row is not None
        return int(row["id"])

    async def create_custom_model(self, key: str, name: str, organization_id: int, base_language_id: int) -> int:
        """A custom model.

        Raises:
            DatabaseRefused: the key is taken, or there is no such organization or base language.
        """
        row = await self._database.fetch_row(_Q["create_custom_model"], key, name, organization_id, base_language_id)
        assert row is not None
        return int(row["id"])

    async def model(self, key_or_id: str) -> Record | None:
        """A model by what an operator has at hand."""
        return await self._database.fetch_row(_Q["model_by_key_or_id"], key_or_id)

    async def base_language(self, base_language_id: int) -> BaseLanguage | None:
        """A base language, whole."""
        return _base_language(await self._database.fetch_row(_Q["base_language_by_id"], base_language_id))

    async def base_language_by_key(self, key: str) -> BaseLanguage | None:
        """A base language, by key."""
        return _base_language(await self._database.fetch_row(_Q["base_language_by_key"], key))

    async def versions(self, model_id: int) -> Sequence[Record]:
        """What a model has published, the newest first."""
        return await self._database.fetch(_Q["versions_of_model"], model_id)

    async def serve_version(self, model_id: int, number: int) -> bool:
        """Put a published version (back) into use; False: there is none of that number."""
        return await self._database.fetch_row(_Q["serve_version"], model_id, number) is not None


def _base_language(row: Record | None) -> BaseLanguage | None:
    return None if row is None else BaseLanguage(**dict(row))
