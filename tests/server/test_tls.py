"""HTTPS, where a certificate is given."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from engine.errors import ConfigError
from server.config import ServerConfig
from tests.server.harness import run
from tests.server.live_server import listening


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate of this machine's own, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    files = str(folder / "cert.pem"), str(folder / "key.pem")
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost".split()
    named = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    made = ["openssl", *words, *named, "-out", files[0], "-keyout", files[1]]
    subprocess.run(made, check=True, capture_output=True)
    return files


def test_with_a_certificate_the_server_speaks_https(certificate: tuple[str, str]) -> None:
    cert, key = certificate
    config = ServerConfig(ssl_certfile=cert, ssl_keyfile=key)
    assert config.scheme == "https"
    trusting = ssl.create_default_context(cafile=cert)

    async def scenario() -> None:
        async with listening(config) as live:
            async with httpx.AsyncClient(verify=trusting) as http:
                url = f"https://127.0.0.1:{live.port}/v1/completions"
                response = await http.post(url, json={"prompt": "abc", "max_tokens": 4})
                assert response.status_code == 200
                assert response.json()["usage"]["completion_tokens"] == 4
            client = await live.connect()
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(client, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            # Whoever does not speak it gets nothing.
            assert b"HTTP/" not in await loop.sock_recv(client, 1000)
            client.close()

    run(scenario)


def test_a_key_without_a_certificate_is_refused(certificate: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="--ssl-certfile"):
        ServerConfig(ssl_keyfile=certificate[1])


def test_what_is_no_certificate_or_another_ones_key_is_refused(
    certificate: tuple[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="--ssl-keyfile"):
        ServerConfig(ssl_certfile=certificate[0])
    other = tmp_path / "other.pem"
    other.write_text("no key\n")
    with pytest.raises(ConfigError, match="no certificate with a key that fits"):
        ServerConfig(ssl_certfile=certificate[0], ssl_keyfile=str(other))


@pytest.mark.parametrize("name", ["ssl_certfile", "api_key_file"])
def test_files_that_are_not_there_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{name}: there is no file"):
        ServerConfig(**{name: str(tmp_path / "nowhere")})  # type: ignore[arg-type]
