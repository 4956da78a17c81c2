"""CutRootPath: a server that is shown under a path of a proxy's, whether the proxy cuts that path or leaves it.

https://example.org/llm/v1/models ──▶ proxy ──▶ /llm/v1/models or /v1/models ──▶ /v1/models
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class CutRootPath:
    """Middleware; what is behind it knows its own paths only."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if path == self._root_path or path.startswith(f"{self._root_path}/"):
            scope = {**scope, "path": path[len(self._root_path) :] or "/"}
        await self._app(scope, receive, send)
