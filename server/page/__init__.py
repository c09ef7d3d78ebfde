# SPDX-License-Identifier: Apache-2.0
"""The page at `/`: three files, no build step, no request to anywhere else.

They hold nothing secret and are served without a key; whatever the page then asks of the API carries the key that its
user typed.
"""

from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

FOLDER = Path(__file__).parent
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
"""Path, file and type."""
HEADERS = {
    # Nothing but these files and this server's API: text of a model can neither load nor run anything.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def router() -> APIRouter:
    """Routes of the page's files."""
    routes = APIRouter()
    for path, (name, media_type) in FILES.items():
        routes.add_api_route(path, _answer(name, media_type), methods=["GET", "HEAD"], include_in_schema=False)
    return routes


def _answer(name: str, media_type: str) -> Callable[[], FileResponse]:
    def answer() -> FileResponse:
        return FileResponse(FOLDER / name, media_type=media_type, headers=HEADERS)

    return answer
