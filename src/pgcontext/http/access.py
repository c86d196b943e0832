"""Who may come in: with an API key, with an authorizer's claims, or from this machine alone.

Whatever is wrong with a caller, the answer is the same 401: a key that is unknown, expired, revoked
or another tenant's can't be told apart from outside.
"""

from __future__ import annotations

import ipaddress
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast
from uuid import UUID

from pgcontext import keys, limits
from pgcontext.errors import ConfigError
from pgcontext.http.problems import ForbiddenError, UnauthorizedError
from pgcontext.keys import NO_KEY, Found, Keys, Presented
from pgcontext.settings import SCOPES, Scope

if TYPE_CHECKING:
    from starlette.types import Scope as AsgiScope

    from pgcontext.settings import Settings
    from pgcontext.store import ContextStore

LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})


class Caller(NamedTuple):
    """Who is asking: a tenant, and what may be done.

    Attributes:
        tenant_id: whose contexts; None for the store's own tenant.
        scope: what the caller may do.
    """

    tenant_id: UUID | None
    scope: Scope

    def must_be_allowed(self, needed: Scope) -> None:
        """Raise ForbiddenError unless the caller's scope includes this one."""
        if SCOPES.index(self.scope) < SCOPES.index(needed):
            raise ForbiddenError(f"This needs the scope {needed}; the caller has {self.scope}.")


class Gate(Protocol):
    """Decides who comes in."""

    async def admit(self, request: AsgiScope) -> Caller:
        """Return who is asking.

        Raises:
            UnauthorizedError: nobody who may come in.
        """
        ...


def gate(store: ContextStore, settings: Settings) -> Gate:
    """Return the gate that the settings name.

    Raises:
        ConfigError: PGCONTEXT_AUTH=none in a function, which is never on loopback only.
    """
    if settings.auth == "keys":
        return KeyGate(Keys.of(store), remember_seconds=settings.key_cache_seconds)
    if settings.auth == "authorizer":
        return ClaimGate(settings)
    if settings.in_function:
        msg = "PGCONTEXT_AUTH=none is for this machine alone; in a function set keys or authorizer."
        raise ConfigError(msg)
    return LocalGate()


def _unauthorized() -> UnauthorizedError:
    return UnauthorizedError("A valid key is needed: Authorization: Bearer <key>.")


class KeyGate:
    """Admits whoever shows a live API key.

    What is known of a key is remembered for a while, so that a warm request asks the database
    nothing more; a revoked key goes on for at most that long.

    Args:
        known: where keys are looked up.
        remember_seconds: how long what was found is believed.
    """

    def __init__(self, known: Keys, *, remember_seconds: float) -> None:
        self._keys = known
        # Apart, so that a flood of wrong keys pushes out no right one.
        self._live = Remembered(remember_seconds)
        self._dead = Remembered(remember_seconds)

    async def admit(self, request: AsgiScope) -> Caller:
        """Return the tenant and the scope of the key in the Authorization header."""
        presented = keys.read(_bearer(request))
        if presented is None:
            raise _unauthorized()
        found = await self._find(presented)
        # Compared also when there is nothing to compare with: the time says nothing.
        right = (found or NO_KEY).opens_for(presented)
        if found is None or not right:
            raise _unauthorized()
        return Caller(presented.tenant_id, found.scope)

    async def _find(self, presented: Presented) -> Found | None:
        name = (presented.tenant_id, presented.id)
        found = self._live.get(name)
        if found is not None:
            return found
        if self._dead.get(name) is not None:
            return None
        found = await self._keys.look_up(presented)
        if found is None:
            self._dead.put(name, NO_KEY)
        else:
            self._live.put(name, found)
        return found


class Remembered:
    """What was found of keys, for a bounded time and a bounded number of them."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._known: dict[tuple[UUID, UUID], tuple[float, float, Found]] = {}

    def get(self, name: tuple[UUID, UUID]) -> Found | None:
        """Return what is remembered, unless it is too old.

        By the wall clock: others stop while a function is frozen. One that was set back makes
        everything too old.
        """
        entry = self._known.get(name)
        if entry is None:
            return None
        since, until, found = entry
        if since <= time.time() < until:
            return found
        del self._known[name]
        return None

    def put(self, name: tuple[UUID, UUID], found: Found) -> None:
        """Remember, and forget the oldest when there are too many."""
        left = self._seconds
        if found.seconds_left is not None:
            left = min(left, found.seconds_left)
        if len(self._known) >= limits.KEYS_REMEMBERED_COUNT_MAX:
            del self._known[next(iter(self._known))]
        now = time.time()
        self._known[name] = (now, now + left, found)


class ClaimGate:
    """Admits whom an authorizer in front of the function has admitted.

    The claims come in the event that the platform hands to the function, never in anything that a
    client sends: behind any other server there are none, and nobody comes in.
    """

    def __init__(self, settings: Settings) -> None:
        self._tenant_at = settings.auth_tenant or ""
        self._tenants = settings.auth_tenants
        self._scope = settings.auth_scope

    async def admit(self, request: AsgiScope) -> Caller:
        """Return the tenant and the scope that the claims name."""
        context = _at(request.get("aws.event"), "/requestContext")
        tenant_id = self._tenant(_at(context, self._tenant_at))
        scope = self._scope
        if scope.startswith("/"):
            # OAuth puts spaces between scopes, and API Gateway brackets around a list of them.
            words = str(_at(context, scope) or "").strip("[]").replace(",", " ").split()
            said = {word.removeprefix("pgcontext:").removeprefix("pgcontext/") for word in words}
            scope = next((name for name in reversed(SCOPES) if name in said), "")
        if tenant_id is None or scope not in SCOPES:
            raise _unauthorized()
        return Caller(tenant_id, scope)

    def _tenant(self, claim: object) -> UUID | None:
        if not isinstance(claim, str):
            return None
        if claim in self._tenants:
            return self._tenants[claim]
        try:
            return UUID(claim)
        except ValueError:
            return None


class LocalGate:
    """Admits everybody on this machine, as the store's own tenant, to everything.

    The server's own address decides, which a server that listens elsewhere too knows for each
    connection. The name that was asked for has to be this machine's as well, or any web page could
    call under a name of its own that leads here.
    """

    async def admit(self, request: AsgiScope) -> Caller:
        """Return the store's own tenant."""
        server: Any = request.get("server")
        host = _header(request, b"host").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if server is None or not is_local(server[0], server[1]) or name not in LOCAL_NAMES:
            raise UnauthorizedError("PGCONTEXT_AUTH=none admits callers on the same machine only.")
        return Caller(None, "admin")


def is_local(host: str, port: int | None = 0) -> bool:
    """Tell whether an address is reached from this machine only; without a port it is a socket."""
    if port is None or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bearer(request: AsgiScope) -> str:
    scheme, _, text = _header(request, b"authorization").partition(" ")
    return text.strip() if scheme.lower() == "bearer" else ""


def _header(request: AsgiScope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in request["headers"] if key == name), "")


def _at(value: Any, pointer: str) -> Any:  # noqa: ANN401 (JSON)
    """Return what a JSON pointer leads to, or None. Source: RFC 6901."""
    for part in pointer.split("/")[1:]:
        if not isinstance(value, dict):
            return None
        inner = cast("dict[str, Any]", value)
        value = inner.get(part.replace("~1", "/").replace("~0", "~"))
    return value
