"""What every part of the store has: settings, tenant, connections."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, LiteralString
from uuid import UUID

from pgcontext import inputs, limits, statements
from pgcontext.embedding import HttpEmbedder, embedder_of
from pgcontext.embedding.names import model_name
from pgcontext.errors import ConfigError, ContextStoreError, EmbeddingError, InvalidInputError
from pgcontext.pool import Pool, seconds_left
from pgcontext.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from pgcontext.connections import Connection
    from pgcontext.embedding import Embedder
    from pgcontext.tokens import Tokenizer

Rows = list[Any]

NIL_TENANT: Final = UUID(int=0)
_SHARE_OF_CLAIM: Final = 0.9  # for embedding; the rest is for writing what came


class StoreBase:
    """Holds what a store is made of and sends its statements."""

    _tokenizer: Tokenizer | None

    def __init__(
        self,
        url: str | None = None,
        *,
        tenant_id: UUID | str | None = None,
        embedder: Embedder | None = None,
        tokenizer: Tokenizer | None = None,
        settings: Settings | None = None,
    ) -> None:
        if settings is None:
            said: dict[str, Any] = {} if url is None else {"url": url}
            settings = Settings.from_env(**said, **_settings_beside(embedder))
        elif url is not None:
            msg = "Give either url or settings, not both."
            raise ConfigError(msg)
        else:
            settings.checked()
        if settings.url is None and settings.in_function:
            msg = (
                "No database URL is set, and a function cannot run the embedded PostgreSQL: set "
                "DATABASE_URL to the pooled address of yours."
            )
            raise ConfigError(msg)
        self._settings = settings
        self._tenant_id = NIL_TENANT if tenant_id is None else inputs.uuid(tenant_id, "tenant_id")
        # Only one that the store made itself is closed with it.
        self._own_embedder = embedder_of(settings) if embedder is None else None
        self._embedder = self._own_embedder if embedder is None else _usable(embedder)
        self._tokenizer = tokenizer
        self._pool = Pool(settings)

    @classmethod
    def from_env(cls, **overrides: Any) -> Self:  # noqa: ANN401
        """Make a store of the environment; `overrides` are arguments of the class or settings.

        `embedder` and `tokenizer` may be either: an object, or the name that the setting has.
        """
        own = {
            name: overrides.pop(name)
            for name in ("tenant_id", "embedder", "tokenizer")
            if name in overrides and (name == "tenant_id" or not isinstance(overrides[name], str))
        }
        said = _settings_beside(own.get("embedder")) | overrides
        return cls(settings=Settings.from_env(**said), **own)

    def for_tenant(self, tenant_id: UUID | str) -> Self:
        """Return a store for another tenant that shares this one's connections."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._tenant_id = inputs.uuid(tenant_id, "tenant_id")
        return other

    @property
    def tenant_id(self) -> UUID:
        """Whose contexts these are."""
        return self._tenant_id

    @property
    def embedder(self) -> Embedder | None:
        """What makes embeddings of text: the one it was given, or the one of the settings."""
        return self._embedder

    @property
    def settings(self) -> Settings:
        """The settings it was made with."""
        return self._settings

    async def __aenter__(self) -> Self:
        """Return the store; nothing is connected yet."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close this event loop's connections; a later call makes new ones.

        Those of an embedder that the store was given stay open.
        """
        try:
            await self._pool.aclose()
        finally:
            if isinstance(self._own_embedder, HttpEmbedder):
                await self._own_embedder.aclose()

    def _text(self, statement: LiteralString) -> str:
        return statements.in_schema(statement, self._settings.schema)

    async def _fetch(self, statement: LiteralString, *arguments: Any) -> tuple[Rows, bool]:  # noqa: ANN401
        """Send one statement with the tenant first; see `Pool.fetch`."""
        return await self._pool.fetch(self._text(statement), self._tenant_id, *arguments)

    async def _fresh(self, statement: LiteralString, locked_id: UUID, *arguments: Any) -> Rows:  # noqa: ANN401
        """Send a statement that locks a context and says when its snapshot was older than that.

        Then somebody changed the context in between, and what the statement saw may be wrong, so
        it changed nothing. It is sent again in a transaction that holds the lock first.
        """
        found, _ = await self._fetch(statement, *arguments)
        if not found or not found[0]["stale"]:
            return found

        async def work(connection: Connection) -> Rows:
            await connection.fetch(self._text(statements.LOCK), self._tenant_id, locked_id)
            return await connection.fetch(self._text(statement), self._tenant_id, *arguments)

        found, _ = await self._pool.transact(work, statement)
        return found

    async def _embedded(
        self, embedder: Embedder, texts: list[str], seconds: float | None = None
    ) -> list[str]:
        """Return one embedding for each text, as statements take it. No connection is held.

        Args:
            embedder: makes them.
            texts: none of them blank.
            seconds: how long it may take; None for as long as somebody waits for the result.

        Raises:
            EmbeddingError: the embedder failed, did not answer in time, or returned something else
                than one `float[dimensions]` for each text.
        """
        if seconds is None:
            seconds = share_of_time(self._settings.embedding_seconds)
        bound = asyncio.timeout(seconds)
        try:
            async with bound:
                vectors = await embedder.embed(texts)
            made = [
                inputs.embedding(
                    vector, dimensions=self._settings.dimensions, name="the embedder's vector"
                )
                for vector in vectors
            ]
        except InvalidInputError as error:
            raise EmbeddingError(f"An embedding cannot be used: {error}") from error
        except ContextStoreError:
            raise
        except Exception as error:
            if bound.expired():
                msg = f"The embedder did not answer within {max(0, seconds):,.1f} s."
                raise EmbeddingError(msg, retryable=True) from None
            # Its own words may quote the text.
            msg = f"The embedder failed ({type(error).__name__})."
            raise EmbeddingError(msg, retryable=isinstance(error, OSError)) from error
        if len(made) != len(texts):
            msg = f"The embedder returned {len(made):,} embeddings for {len(texts):,} texts."
            raise EmbeddingError(msg)
        return made

    def _job_seconds(self, spent: float = 0.0) -> float:
        """Return how long embedding a batch may take where nobody waits for the single message.

        Not quite as long as it is claimed: another worker may take it then, and what comes has to
        be written before.

        Args:
            spent: how many seconds of the claim are over.
        """
        seconds = self._settings.claim_seconds * _SHARE_OF_CLAIM - spent
        return share_of_time(max(0.0, seconds))

    def _embedding_model(self) -> str | None:
        if self._embedder is not None:
            return self._embedder.model
        return self._settings.embedding_model


def _usable(embedder: Embedder) -> Embedder:
    """Return the embedder, if it is one that can be asked and whose vectors can be kept.

    Raises:
        ConfigError: it lacks something.
    """
    if not callable(getattr(embedder, "embed", None)):
        msg = (
            "An embedder has a model, its name, and an async embed; CallableEmbedder makes one of "
            "a function."
        )
        raise ConfigError(msg)
    model_name(getattr(embedder, "model", None))
    return embedder


def share_of_time(seconds: float) -> float:
    """Return how long embedding may take: so long, or less where the caller's time is short.

    Of the time that the caller left (`pool.within`) it gets half: the statement that follows needs
    some too, also when the embedder never answers.
    """
    left = seconds_left()
    return seconds if left is None else min(seconds, left / 2)


def has_meaning(content: str | None) -> bool:
    """Tell whether there is something to embed: blanks aren't, and some servers refuse them."""
    return bool(content and not content.isspace())


def _settings_beside(embedder: Embedder | None) -> dict[str, Any]:
    """Return the settings that an embedder which is given outranks."""
    return {} if embedder is None else {"embedder": "none"}


def metadata_json(value: Mapping[str, Any] | None) -> str | None:
    """Return metadata as its statements take it."""
    return inputs.json_object(value, "metadata", bytes_max=limits.METADATA_BYTES_MAX)


def cap_of(at_version: int | None, before: int | None = None) -> int:
    """Return the highest version to look at."""
    at_version = inputs.version(at_version, "at_version")
    before = inputs.version(before, "before")
    return min(
        limits.VERSION_MAX if at_version is None else at_version,
        limits.VERSION_MAX if before is None else before - 1,
    )
