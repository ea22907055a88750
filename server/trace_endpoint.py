"""Where traces are sent, and whether they can be; it imports nothing that sends them."""

from __future__ import annotations

from importlib.util import find_spec
from urllib.parse import urlsplit

from engine.errors import ConfigError

_NEEDED = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")
_PATH = "/v1/traces"


def check_endpoint(endpoint: str) -> None:
    """Check that traces can be sent to a collector.

    Raises:
        ConfigError: it is no address, it holds a password, or what sends traces is not installed.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(
            f"otlp_endpoint: {parts.scheme}://{parts.hostname} is no address of a collector; give "
            "one that begins with http:// or https://."
        )
    if parts.username is not None:
        raise ConfigError(
            "otlp_endpoint: it holds a name or password, which others can read; give headers by "
            "the environment's OTEL_EXPORTER_OTLP_HEADERS."
        )
    if not all(map(_is_installed, _NEEDED)):
        raise ConfigError(
            "otlp_endpoint: traces need OpenTelemetry's SDK and its exporter, which are not "
            "installed; pip install 'outdraft[otel]'."
        )


def traces_url(endpoint: str) -> str:
    """Give the address that spans are posted to."""
    base = endpoint.rstrip("/")
    return base if base.endswith(_PATH) else base + _PATH


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
