# SPDX-License-Identifier: Apache-2.0
"""The page's files: served before an engine exists, and asking nobody else for anything."""

import re

import httpx
import pytest

from aerie.server.app import create_app
from aerie.server.house import House
from aerie.server.page import FILES, FOLDER
from aerie.server.settings import ServeSettings


@pytest.mark.parametrize(("path", "file", "media_type"), [(path, *told) for path, told in FILES.items()])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_its_files_are_served_while_the_engine_loads(path: str, file: str, media_type: str, method: str) -> None:
    transport = httpx.ASGITransport(create_app(ServeSettings(), House(ServeSettings())))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        answer = await http.request(method, path)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == media_type
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.content == ((FOLDER / file).read_bytes() if method == "GET" else b"")


def test_they_name_no_other_host_and_hold_nothing_inline() -> None:
    page = (FOLDER / "index.html").read_text()
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page)) == {"data:,", "/page.css", "/page.js"}
    assert not re.search(r"<style|style=|<script>|\son\w+=", page)
    for name in ("page.css", "page.js"):
        assert not re.search(r"https?://|@import|url\(", (FOLDER / name).read_text()), name


def test_text_of_the_model_never_becomes_markup() -> None:
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", (FOLDER / "page.js").read_text()
    )
