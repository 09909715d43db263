"""Whoever is logged in acts by their own click: a page of another origin cannot act for them.

A browser sends Airflow's cookie along with a request that another page on the same host made, whatever its port. So
every change (any method but the reading ones) that comes with a cookie must name an origin of ours. Clients with a
token and without a cookie are not asked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]

READING = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_PORTS = {"http": 80, "https": 443}


class OwnOrigin:
    """ASGI middleware of the whole api-server: answers 403 to a change that another origin asks for."""

    def __init__(self, app: App, allowed: Callable[[], str]) -> None:
        """Args: `app` is what is guarded; `allowed` says the address under which people see it (behind a proxy)."""
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass the request on, or refuse it."""
        reason = self._refused(scope) if scope["type"] == "http" and scope["method"] not in READING else None
        if reason is None:
            await self._app(scope, receive, send)
            return
        from fastapi.responses import JSONResponse

        await JSONResponse({"detail": reason}, status_code=403)(scope, receive, send)

    def _refused(self, scope: Scope) -> str | None:
        """Why the change is refused; None where it is not."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if "cookie" not in headers:
            return None
        origin = headers.get("origin")
        if origin is None:
            # every browser names the origin of a change; older ones at least say whether the site is another
            other = headers.get("sec-fetch-site", "none") not in {"same-origin", "none"}
            return "a change asked for by a page of another site was refused" if other else None
        own = {_place(f"{origin.partition(':')[0]}://{headers.get('host', '')}"), _place(self._allowed())}
        if _place(origin) is not None and _place(origin) in own:
            return None
        return (
            f"a change asked for by a page of {origin[:100]!r} was refused: only pages of this server may. Behind a "
            "proxy, set PERENNIAL_AIRFLOW_URL to the address that people type."
        )


def _place(address: str) -> tuple[str, int] | None:
    """Host and port of an address; None where it has none (`null`). Not the scheme: a proxy may end TLS."""
    try:
        parts = urlsplit(address)
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None
    return None if parts.hostname is None or port is None else (parts.hostname, port)
