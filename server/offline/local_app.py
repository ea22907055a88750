"""The server's application without a server: what asks its lines is in this process."""

from __future__ import annotations

import asyncio

from engine.client.process import EngineClient
from server.app import create_app
from server.batches.line_run import LineRunner
from server.config import ServerConfig
from server.http import load_model_tokenizer
from server.keys import KeyRing
from server.served import make_served


async def local_line_runner(engine: EngineClient, config: ServerConfig, name: str) -> LineRunner:
    """Make what answers lines, once the engine is ready.

    Args:
        engine: started, perhaps still loading.
        config: the server's settings.
        name: of the model, as it was given.

    Raises:
        OutdraftError: the engine or the tokenizer could not load.
    """
    served = make_served(engine, engine.config, name=name, names=config.served_model_name)
    served.tool_parser = config.tool_parser
    served.reasoning_parser = config.reasoning_parser
    tokenizer = await asyncio.to_thread(load_model_tokenizer, engine.config)
    await engine.wait_ready()
    served.install_tokenizer(tokenizer)
    return LineRunner(create_app(served, config, KeyRing()))
