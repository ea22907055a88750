"""The playground's files: who gets them, how they are kept, and what the page may do."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.config import ServerConfig
from server.web_files import read_web_files
from tests.server.harness import error_of, run, serving

KEY = "sk-alice-0123456789"
GUARDED = ServerConfig(api_key=(KEY,), max_requests_per_minute=1)
MAX_WEIGHT_BYTES = 400_000
FOLDER = Path(__file__).resolve().parents[2] / "server" / "web"


def test_the_page_and_its_files_need_no_key_and_are_not_counted() -> None:
    async def scenario() -> None:
        async with serving(config=GUARDED) as api:
            page = await api.http.get("/")
            assert page.status_code == 200
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            for path, file in read_web_files().items():
                response = await api.http.get(path)
                assert response.status_code == 200, path
                assert response.content == file.content
                assert response.headers["x-content-type-options"] == "nosniff"

    run(scenario)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_the_pages_paths_are_open_to_readers_alone(method: str) -> None:
    async def scenario() -> None:
        async with serving(config=GUARDED) as api:
            for path in ("/", "/web/app.js"):
                error_of(await api.http.request(method, path), 401)

    run(scenario)


@pytest.mark.parametrize(
    "path",
    ["/web/../app.py", "/web/%2e%2e/app.py", "/web/vendor/marked/LICENSE", "/web/index.html", "//"],
)
def test_no_other_file_is_sent(path: str) -> None:
    async def scenario() -> None:
        async with serving() as api:
            url = api.http.base_url.copy_with(raw_path=path.encode())
            assert (await api.http.get(url)).status_code == 404

    run(scenario)


def test_what_a_browser_has_is_not_sent_again() -> None:
    async def scenario() -> None:
        async with serving() as api:
            first = await api.http.get("/web/app.js")
            assert first.headers["cache-control"] == "no-cache"
            for known in (first.headers["etag"], f'"x", W/{first.headers["etag"]}'):
                again = await api.http.get("/web/app.js", headers={"if-none-match": known})
                assert again.status_code == 304
                assert again.content == b""
                assert again.headers["etag"] == first.headers["etag"]
            other = await api.http.get("/web/app.js", headers={"if-none-match": '"other"'})
            assert other.status_code == 200

    run(scenario)


def test_the_page_alone_has_a_policy_that_lets_nothing_in_from_elsewhere() -> None:
    async def scenario() -> None:
        async with serving() as api:
            policy = (await api.http.get("/")).headers["content-security-policy"]
            rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
            assert rules["default-src"] == "'none'"
            assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
            assert rules["trusted-types"] == "'none'"
            assert "unsafe" not in policy
            for path in ("/health", "/web/app.js"):
                assert "content-security-policy" not in (await api.http.get(path)).headers

    run(scenario)


def test_without_the_page_there_is_nothing_to_find() -> None:
    async def scenario() -> None:
        async with serving(config=ServerConfig(web=False)) as api:
            for path in ("/", "/web/app.js"):
                error_of(await api.http.get(path), 404)
        async with serving(config=ServerConfig(web=False, api_key=(KEY,))) as api:
            for path in ("/", "/web/app.js"):
                error_of(await api.http.get(path), 401)

    run(scenario)


def test_everything_together_is_light() -> None:
    weight = sum(len(file.content) for file in read_web_files().values())
    assert 50_000 < weight < MAX_WEIGHT_BYTES


def test_what_others_wrote_lies_beside_its_licence() -> None:
    libraries = [folder for folder in (FOLDER / "vendor").iterdir() if folder.is_dir()]
    assert len(libraries) >= 2
    for folder in libraries:
        assert (folder / "LICENSE").stat().st_size > 500, folder
