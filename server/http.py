"""Runs the HTTP side of a server whose engine has been started: listens, loads, serves, stops.

The server listens at once and answers 503 until the engine is ready. It does not own the engine.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from engine.client.process import EngineClient
from engine.config import EngineConfig, acceptance_text
from engine.errors import ConfigError
from engine.tokenization import Tokenizer, load_tokenizer
from server.app import create_app
from server.batches.data_dir import DataDir, DataDirError, NoDataDir
from server.batches.service import BatchService
from server.config import ServerConfig
from server.connection import connection_options
from server.draining import DrainingServer
from server.keys import KeyRing, read_keys
from server.served import Served, make_served

_GRACE_S = 5
_NO_DATA_DIR = NoDataDir("It was started without a data directory.")

logger = logging.getLogger(__name__)


async def serve_http(
    engine: EngineClient,
    config: EngineConfig,
    server_config: ServerConfig,
    *,
    name: str,
    keys: KeyRing | None = None,
    data_dir: DataDir | NoDataDir = _NO_DATA_DIR,
) -> int:
    """Serve until told to stop; returns the exit status.

    Args:
        engine: started, perhaps still loading.
        config: its settings.
        server_config: where to listen.
        name: the model as it was given.
        keys: that callers must have; None = those of the settings.
        data_dir: where files and batches are; closed at the end.

    Raises:
        ConfigError: keys or certificates that cannot be used.
        OutdraftError: the engine or the tokenizer could not load.
    """
    served = make_served(engine, config, name=name, names=server_config.served_model_name)
    served.tool_parser = server_config.tool_parser
    served.reasoning_parser = server_config.reasoning_parser
    end_tracing = _start_tracing(served, server_config)
    keys = read_keys(server_config) if keys is None else keys
    batches = _open_batches(served, server_config, data_dir)
    app = create_app(served, server_config, keys, batches)
    server = DrainingServer(
        uvicorn_config(app, served, server_config),
        engine,
        server_config.drain_timeout_s,
        None if isinstance(batches, NoDataDir) else batches.stop,
    )
    # uvicorn gives these back when it is done; the engine is closed after that, so signals must
    # find this harmless handler again.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.handle_exit)
    if served.response_cache is not None:
        served.response_cache.start()
    if not isinstance(batches, NoDataDir):
        await batches.start(app, keys)
    loading = asyncio.create_task(_load(served, config, server_config))
    serving = asyncio.create_task(_listen(server))
    await asyncio.wait({loading, serving}, return_when=asyncio.FIRST_COMPLETED)
    failure = loading.exception() if loading.done() else None
    if failure is not None:
        server.should_exit = True
    await serving
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    await _close_stores(served, batches)
    await asyncio.to_thread(end_tracing)
    if failure is not None:
        raise failure
    return 0 if server.started else 1


async def _close_stores(served: Served, batches: BatchService | NoDataDir) -> None:
    """Write down what is not yet, of answers that are remembered and of batches."""
    if served.response_cache is not None:
        await served.response_cache.close()
    if not isinstance(batches, NoDataDir):
        await batches.close()


def _open_batches(
    served: Served, server_config: ServerConfig, data_dir: DataDir | NoDataDir
) -> BatchService | NoDataDir:
    """Open what keeps files and batches, where there is a folder for them.

    Raises:
        DataDirError: their database cannot be opened, in a folder that was asked for.
    """
    if isinstance(data_dir, NoDataDir):
        return data_dir
    try:
        return BatchService(data_dir, server_config, served.metrics)
    except DataDirError as error:
        data_dir.close()
        if server_config.data_dir is not None:
            raise
        logger.warning("no_files_and_batches reason=%r", str(error))
        return NoDataDir(str(error))


def _start_tracing(served: Served, server_config: ServerConfig) -> Callable[[], None]:
    """Let calls be traced, where somebody wants that; gives what ends it."""
    if server_config.otlp_endpoint is None:
        return lambda: None
    # Imported here because it needs what only those install who want traces.
    from server.otlp import CallTracer, otlp_exporter

    tracer = CallTracer(served.name, otlp_exporter(server_config.otlp_endpoint))
    served.trace = tracer.tell
    return tracer.close


async def _listen(server: uvicorn.Server) -> None:
    """Run uvicorn; where it cannot listen, it has said so and calls for an exit."""
    try:
        await server.serve()
    except SystemExit:
        logger.error("server_not_started host=%s port=%d", server.config.host, server.config.port)


async def _load(served: Served, config: EngineConfig, server_config: ServerConfig) -> None:
    tokenizer = await asyncio.to_thread(load_model_tokenizer, config)
    info = await served.engine.wait_ready()
    served.install_tokenizer(tokenizer)
    logger.info(
        "ready model=%s url=%s://%s:%d engine_pid=%s max_model_len=%d num_draft_tokens=%d",
        served.name,
        server_config.scheme,
        server_config.host,
        server_config.port,
        served.engine.pid,
        info.max_total_tokens,
        info.num_draft_tokens if info.has_draft else 0,
    )
    if info.synthetic_acceptance:
        logger.warning(
            "synthetic_acceptance rates=%s words=not_the_models",
            acceptance_text(info.synthetic_acceptance),
        )


def load_model_tokenizer(config: EngineConfig) -> Tokenizer:
    """Load the tokenizer of the model that is served.

    Raises:
        ConfigError: it has none.
    """
    model = config.model
    assert model.model is not None, "a resolved configuration names a model"
    tokenizer = load_tokenizer(model.model, model.revision, model.trust_remote_code)
    if tokenizer is None:
        raise ConfigError(
            f"{model.model} has no tokenizer, and a server speaks text; "
            "use `outdraft generate` with prompt_token_ids."
        )
    return tokenizer


def uvicorn_config(app: FastAPI, served: Served, server_config: ServerConfig) -> uvicorn.Config:
    """Give uvicorn's settings for an app."""
    return uvicorn.Config(
        app,
        host=server_config.host,
        port=server_config.port,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=_GRACE_S,
        **connection_options(server_config, served.metrics),
    )
