"""`outdraft serve`: the engine in its process, the HTTP server in this one."""

from __future__ import annotations

import argparse
import logging
import os

from engine.client.process import EngineClient
from engine.client.supervision import SupervisionConfig
from engine.config_files import DEMO, config_names, load_config, resolve
from engine.config_flags import (
    add_config_flags,
    add_option_flags,
    config_from_args,
    given_options,
)
from engine.log_format import adopt_loggers, start_logging
from engine.uncollected import uncollected
from server.batches.data_dir import DataDir, NoDataDir, find_data_dir
from server.call_record import note_request_id
from server.cli.event_loop import do_without_torch, run_loop
from server.config import ServerConfig
from server.keys import KeyRing, read_keys


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add what the command does, and its flags."""
    parser.description = (
        "Serve a model, with a draft if one is named, over an OpenAI-style API. "
        "No model means the demo pair."
    )
    parser.add_argument(
        "--config",
        metavar="NAME_OR_FILE",
        help=f"settings to start from: a YAML file, or one of {', '.join(config_names())}",
    )
    add_option_flags(parser.add_argument_group("server"), ServerConfig)
    add_option_flags(parser.add_argument_group("supervision"), SupervisionConfig)
    add_config_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted.

    Raises:
        ConfigError: a setting cannot be honoured.
        ModelLoadError: a model cannot be loaded or served.
    """
    base = load_config(args.config) if args.config is not None else None
    asked = config_from_args(args, base)
    server_config = ServerConfig(**given_options(args, ServerConfig))
    start_logging(server_config.log_level, server_config.log_format, note_request_id)
    # It writes every event, and so everybody's words, at this level.
    logging.getLogger("sse_starlette").setLevel(logging.INFO)
    data_dir = find_data_dir(server_config.data_dir)
    secret = None if isinstance(data_dir, NoDataDir) else data_dir.secret
    keys = read_keys(server_config, os.environ, secret)
    server_config = server_config.without_secrets()
    supervision = SupervisionConfig(**given_options(args, SupervisionConfig))
    engine = EngineClient(
        resolve(asked),
        log_level=server_config.log_level,
        log_format=server_config.log_format,
        supervision=supervision,
    )
    return run_loop(_serve(engine, server_config, asked.model.model or DEMO, keys, data_dir))


async def _serve(
    engine: EngineClient,
    server_config: ServerConfig,
    name: str,
    keys: KeyRing,
    data_dir: DataDir | NoDataDir,
) -> int:
    config = engine.config
    await engine.start()
    try:
        if not config.model.trust_remote_code:
            do_without_torch()
        # Imported here because it takes a while, in which the engine is loading already.
        with uncollected():
            from server.http import serve_http
        adopt_loggers()

        return await serve_http(
            engine, config, server_config, name=name, keys=keys, data_dir=data_dir
        )
    finally:
        await engine.close()
