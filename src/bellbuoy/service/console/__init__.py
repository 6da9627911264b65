"""The operator's console: one page that shows what `GET /v1/events` says and does what the HTTP interface can do.

It is static and holds no secret: the key is typed in by whoever opens it and stays in that tab.
"""

from __future__ import annotations

from importlib.resources import files

from bellbuoy.service.api.exchange import Reply

# Nothing from elsewhere, no inline script, in nobody's frame: text that a sender chose can never become code here.
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILES = {
    "/console": ("page.html", b"text/html; charset=utf-8"),
    "/console/console.js": ("console.js", b"text/javascript; charset=utf-8"),
    "/console/console.css": ("console.css", b"text/css; charset=utf-8"),
}


def pages() -> dict[str, Reply]:
    """The console's files by their paths."""
    headers = {"Content-Security-Policy": _CSP, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    return {
        path: Reply(200, (files(__name__) / name).read_bytes(), kind, headers) for path, (name, kind) in _FILES.items()
    }
