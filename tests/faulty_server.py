"""`outdraft serve` around a made-up core: `python -m tests.faulty_server FOLDER CORE --port N ...`.

The folder holds a tokenizer; everything but the core is what users run.
"""

from __future__ import annotations

import argparse

from engine.client.process import EngineClient
from engine.client.supervision import SupervisionConfig
from engine.config import EngineConfig, ModelConfig
from engine.config_flags import add_option_flags, given_options
from engine.log_format import start_logging
from server.batches.data_dir import NoDataDir
from server.call_record import note_request_id
from server.cli.event_loop import run_loop
from server.cli.serve import _serve
from server.config import ServerConfig
from server.keys import read_keys


def main() -> int:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("core")
    for kind in (ServerConfig, SupervisionConfig):
        add_option_flags(parser, kind)
    args = parser.parse_args()
    server_config = ServerConfig(**given_options(args, ServerConfig))
    start_logging(server_config.log_level, server_config.log_format, note_request_id)
    engine = EngineClient(
        EngineConfig(model=ModelConfig(model=args.folder, max_model_len=4096)),
        core_factory=f"tests.faulty_cores:{args.core}",
        log_level=server_config.log_level,
        log_format=server_config.log_format,
        supervision=SupervisionConfig(**given_options(args, SupervisionConfig)),
    )
    keys, nothing = read_keys(server_config), NoDataDir("It is for tests.")
    return run_loop(_serve(engine, server_config, "tiny", keys, nothing))


if __name__ == "__main__":
    raise SystemExit(main())
