"""API keys: who may come in over HTTP, for which tenant, and what they may do.

A key reads `pgc_<tenant>_<id>_<secret>`. Tenant and id are in clear, so that a key is looked up by
the same (tenant_id, id) as everything else. Of the secret only the SHA-256 is stored. A slow hash
is for passwords, which can be guessed; 256 random bits can't, however fast the hash, and a fast
one costs a request nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from pgcontext import inputs, limits
from pgcontext.errors import ContextStoreError, InvalidInputError, LimitExceededError
from pgcontext.ids import uuid7
from pgcontext.pool import UniqueViolationError
from pgcontext.settings import SCOPES, Scope
from pgcontext.statements import keys as statements
from pgcontext.store.base import StoreBase

PREFIX: Final = "pgc"
SECRET_BYTES: Final = 32


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """An API key, without its secret.

    Attributes:
        tenant_id: whose contexts it opens.
        id: the public part by which it is listed, rotated and revoked.
        name: what it is for, for people.
        scope: read; write, which may read too; admin, which may purge and erase too.
        created_at: when it was made, in UTC.
        expires_at: from then on it is refused.
        revoked_at: from then on it is refused; lies ahead for a rotated key with time to go on.
    """

    tenant_id: UUID
    id: UUID
    name: str
    scope: Scope
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that was just made: the one time that its text is known."""

    key: ApiKey
    text: str

    def __repr__(self) -> str:
        """Leave the text out: a repr ends up in logs."""
        return f"NewKey(key={self.key!r})"


class Presented(msgspec.Struct, frozen=True):
    """What a caller shows: tenant, id, and the SHA-256 of the secret."""

    tenant_id: UUID
    id: UUID
    secret_hash: str


class Found(msgspec.Struct, frozen=True):
    """What is known of a live key: its scope, its hash, the seconds left to it."""

    scope: Scope
    secret_hash: str
    seconds_left: float | None

    def opens_for(self, presented: Presented) -> bool:
        """Tell whether the secret is right, in a time that says nothing about it."""
        return hmac.compare_digest(self.secret_hash, presented.secret_hash)


class KeyNotFoundError(ContextStoreError, LookupError):
    """The tenant has no such key, or it does not live any more."""


class Keys(StoreBase):
    """The API keys of one tenant; a store of its own kind, over another one's connections."""

    @classmethod
    def of(cls, store: StoreBase) -> Keys:
        """Return the keys that are in the store's database, for its tenant."""
        keys = object.__new__(cls)
        keys.__dict__.update(store.__dict__)
        return keys

    async def create(
        self, name: str, *, scope: Scope, expires_at: datetime | None = None
    ) -> NewKey:
        """Make a key. One statement.

        Args:
            name: what it is for.
            scope: read, write or admin.
            expires_at: from then on it is refused; None for no end.

        Raises:
            InvalidInputError: an argument is not acceptable.
        """
        label = inputs.text(name, "name", chars_max=limits.NAME_CHARS_MAX)
        if scope not in SCOPES:
            raise InvalidInputError(f"scope must be one of: {', '.join(SCOPES)}.")
        moment = inputs.moment(expires_at, "expires_at")
        key_id, secret = uuid7(), secrets.token_urlsafe(SECRET_BYTES)
        try:
            found, _ = await self._fetch(
                statements.KEY_CREATE, key_id, label, scope, hash_of(secret), moment
            )
        except UniqueViolationError:
            # The id is random, so it was an earlier try of this call, whose reply was lost.
            return NewKey(key=await self._get(key_id), text=self._write(key_id, secret))
        return NewKey(key=self._key(found[0]), text=self._write(key_id, secret))

    async def list(self) -> list[ApiKey]:
        """Return the tenant's keys, newest first, revoked and expired ones too. One statement.

        Raises:
            LimitExceededError: they are more than `KEYS_LISTED_COUNT_MAX`.
        """
        most = limits.KEYS_LISTED_COUNT_MAX
        found, _ = await self._fetch(statements.KEY_LIST, most + 1)
        if len(found) > most:
            raise LimitExceededError(f"The tenant has more than {most:,} keys.")
        return [self._key(row) for row in found]

    async def revoke(self, key_id: UUID | str) -> ApiKey:
        """End a key; twice is once. One statement.

        Who has used it lately may go on for `Settings.key_cache_seconds`.

        Raises:
            KeyNotFoundError: the tenant has no such key.
        """
        key_id = inputs.uuid(key_id, "id")
        found, _ = await self._fetch(statements.KEY_REVOKE, key_id)
        if not found:
            raise KeyNotFoundError(f"Key {key_id} was not found.")
        return self._key(found[0])

    async def rotate(self, key_id: UUID | str, *, grace_seconds: float = 0) -> NewKey:
        """Make a key like this one and end this one. One statement.

        Args:
            key_id: the old key; its name, scope and expiry go over to the new one.
            grace_seconds: how long the old one goes on, for those who still use it.

        Raises:
            KeyNotFoundError: the tenant has no such key, or it was revoked, rotated or has expired.
        """
        key_id = inputs.uuid(key_id, "id")
        grace = inputs.number(
            grace_seconds, "grace_seconds", least=0, most=limits.KEY_GRACE_SECONDS_MAX
        )
        new_id, secret = uuid7(), secrets.token_urlsafe(SECRET_BYTES)
        found, retried = await self._fetch(
            statements.KEY_ROTATE, key_id, new_id, hash_of(secret), grace
        )
        if found:
            return NewKey(key=self._key(found[0]), text=self._write(new_id, secret))
        if retried and any(key.id == new_id for key in await self.list()):
            return NewKey(key=await self._get(new_id), text=self._write(new_id, secret))
        raise KeyNotFoundError(f"Key {key_id} was not found, or does not live any more.")

    async def look_up(self, presented: Presented) -> Found | None:
        """Return what is known of a key, or None when it is not alive. One statement."""
        found, _ = await self._pool.fetch(
            self._text(statements.KEY_LOOK_UP), presented.tenant_id, presented.id
        )
        if not found:
            return None
        row = found[0]
        return Found(row["scope"], row["secret_hash"], row["seconds_left"])

    async def revision(self) -> str | None:
        """Return the revision that the database was migrated to, None before. One statement.

        Raises:
            SchemaMismatchError: the database was never migrated.
        """
        found, _ = await self._pool.fetch(self._text(statements.REVISION))
        return found[0]["revision"] if found else None

    async def _get(self, key_id: UUID) -> ApiKey:
        return next(key for key in await self.list() if key.id == key_id)

    def _key(self, row: Any) -> ApiKey:  # noqa: ANN401 (a row)
        return ApiKey(tenant_id=self._tenant_id, **dict(row))

    def _write(self, key_id: UUID, secret: str) -> str:
        return f"{PREFIX}_{self._tenant_id.hex}_{key_id.hex}_{secret}"


# What a secret is compared with when its key is not known: nothing has this hash.
NO_KEY: Final = Found("read", "0" * 64, None)


def hash_of(secret: str) -> str:
    """Return the SHA-256 of a secret, as it is stored."""
    return hashlib.sha256(secret.encode()).hexdigest()


def read(text: str) -> Presented | None:
    """Take a key apart; None when it can't be one."""
    if len(text) > limits.KEY_CHARS_MAX or not text.isascii():
        return None
    prefix, _, rest = text.partition("_")
    tenant, _, rest = rest.partition("_")
    key_id, _, secret = rest.partition("_")
    try:
        presented = Presented(UUID(tenant), UUID(key_id), hash_of(secret))
    except ValueError:
        return None
    return presented if prefix == PREFIX and secret else None
