"""One HTTP port per process: /metrics for Prometheus, /healthz, and small JSON pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server

Page = Callable[[], bytes]
"""Renders a JSON body."""


class MetricsServer:
    """Serves until closed, from daemon threads. `port` is the real one (0 asks for a free port)."""

    def __init__(
        self,
        port: int,
        *,
        host: str = "127.0.0.1",
        registry: CollectorRegistry = REGISTRY,
        unhealthy: Callable[[], str | None] = lambda: None,
        pages: Mapping[str, Page] | None = None,
    ) -> None:
        """`unhealthy` returns a reason, or None while all is well; `pages` maps paths to renderers.

        Raises OSError, which names the port, when it is taken.
        """
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            said = f"metrics cannot be served on {host}:{port}: {error.strerror}; choose another"
            raise OSError(error.errno, f"{said} --metrics-port") from None
        self._unhealthy = unhealthy
        self._pages = dict(pages or {})
        self._metrics: Any = self._server.get_app()
        self._server.set_app(self._respond)
        self.port: int = self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _respond(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/healthz":
            reason = self._unhealthy()
            status = "200 OK" if reason is None else "503 Service Unavailable"
            start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
            return [f"{reason or 'ok'}\n".encode()]
        if path in self._pages:
            start_response("200 OK", [("Content-Type", "application/json")])
            return [self._pages[path]()]
        if path in ("/metrics", "/"):
            found: Iterable[bytes] = self._metrics(environ, start_response)
            return found
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"no such page; there are /metrics, /healthz {' '.join(self._pages)}\n".encode()]
