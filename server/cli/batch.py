"""`outdraft batch`: a file or a stream of records in, their answers out, no server."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from typing import Any

from rich.console import Console

from engine.client.process import EngineClient
from engine.client.supervision import SupervisionConfig
from engine.config import EngineConfig
from engine.config_files import DEMO, load_config, resolve
from engine.config_flags import (
    add_config_flags,
    add_option_flags,
    config_from_args,
    given_options,
)
from engine.errors import ConfigError, OutdraftError
from engine.log_format import adopt_loggers, start_logging
from engine.uncollected import uncollected
from server.call_record import note_request_id
from server.cli.event_loop import do_without_torch, run_loop
from server.cli.failures import print_failure
from server.cli.sampling_flags import add_sampling_flags, given_sampling
from server.config import ServerConfig
from server.offline.flow import Bounds
from server.offline.line_file import same_file
from server.offline.numbered_recipe import NumberedRecipe
from server.offline.openai_recipe import OpenAIRecipe
from server.offline.outcome import Recipe
from server.offline.output import Existing, Output
from server.offline.prompt_template import PromptTemplate, text_or_file
from server.offline.records import FORMATS, Source, format_of
from server.offline.run import NOTHING_RAN, Ask, Plan, Run
from server.offline.template_recipe import TemplateRecipe
from server.structured_outputs import json_schema_output

# Of the server's settings those that say how a call is answered; nobody calls by a socket.
_SERVER_FLAGS = (
    "served_model_name",
    "request_timeout",
    "max_body_bytes",
    "ignore_unknown_fields",
    "tool_parser",
    "reasoning_parser",
    "log_level",
    "log_format",
)
_TEMPLATE_FLAGS = ("system", "completion", "json_schema", "id_field", "output_field")
# So many are ready to run whenever one ends.
_ASKED_PER_SEAT = 2


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add what the command does, and its flags."""
    parser.description = (
        "Answer lines as OpenAI's batch API has them, or records of any fields with --template, "
        "and write a line or row for each. What an earlier run has finished is not asked again. "
        "No model means the demo pair."
    )
    parser.add_argument("-i", "--input", required=True, metavar="FILE", help="records; - = stdin")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="answers; - = stdout")
    for name in ("input", "output"):
        parser.add_argument(
            f"--{name}-format", choices=FORMATS, help="none = as the file's name ends, or jsonl"
        )
    parser.add_argument("--config", metavar="NAME_OR_FILE", help="settings to start from")
    _add_run_flags(parser.add_argument_group("run"))
    _add_template_flags(parser.add_argument_group("template"))
    add_sampling_flags(
        parser.add_argument_group("sampling, with --template"), without=("logprobs",)
    )
    add_option_flags(parser.add_argument_group("server"), ServerConfig, _SERVER_FLAGS)
    add_option_flags(parser.add_argument_group("supervision"), SupervisionConfig)
    add_config_flags(parser)


def _add_run_flags(group: Any) -> None:
    group.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        help="go on with an output that exists (default), or leave it alone",
    )
    group.add_argument("--overwrite", action="store_true", help="drop what the output holds")
    group.add_argument(
        "--ordered", action="store_true", help="write answers in the order of their records"
    )
    group.add_argument(
        "--max-in-flight",
        type=int,
        metavar="INT",
        help="records that are asked at once; none = twice --max-num-seqs",
    )
    group.add_argument(
        "--price-per-hour", type=float, metavar="FLOAT", help="of this machine; tells what it cost"
    )


def _add_template_flags(group: Any) -> None:
    group.add_argument(
        "--template",
        metavar="TEXT|@FILE",
        help="prompt of a record, in Jinja with its fields, such as 'Translate: {{ text }}'",
    )
    group.add_argument("--system", metavar="TEXT|@FILE", help="the system's message, in Jinja")
    group.add_argument(
        "--completion", action="store_true", help="let the prompt be completed, without a chat"
    )
    group.add_argument(
        "--json-schema", metavar="TEXT|FILE", help="answers follow it and are written as JSON"
    )
    group.add_argument(
        "--id-field",
        metavar="NAME",
        help="field that names a record; none = id if it has one, else its number",
    )
    group.add_argument("--output-field", metavar="NAME", help="gets the answer (default: output)")


def run(args: argparse.Namespace) -> int:
    """Answer until all records are through, and say how many failed."""
    try:
        return _run(args)
    except OutdraftError as error:
        print_failure(error)
        return NOTHING_RAN


def _run(args: argparse.Namespace) -> int:
    base = load_config(args.config) if args.config is not None else None
    asked = config_from_args(args, base)
    server_config = ServerConfig(**given_options(args, ServerConfig))
    name = asked.model.model or DEMO
    plan = _plan(args, server_config, name, asked)
    start_logging(server_config.log_level, server_config.log_format, note_request_id)
    # It would tell every record.
    logging.getLogger("server.access_log").setLevel(logging.WARNING)
    engine = EngineClient(
        resolve(asked),
        log_level=server_config.log_level,
        log_format=server_config.log_format,
        supervision=SupervisionConfig(**given_options(args, SupervisionConfig)),
    )

    console = Console(stderr=True)
    # Answers on the same terminal would run into it.
    shows_bar = console.is_terminal and not (plan.output.is_stream and sys.stdout.isatty())

    async def load() -> Ask:
        return await _load(engine, server_config, name)

    async def answer() -> int:
        return await Run(plan, console, shows_bar=shows_bar).run(engine, load)

    return run_loop(answer())


async def _load(engine: EngineClient, config: ServerConfig, name: str) -> Ask:
    if not engine.config.model.trust_remote_code:
        do_without_torch()
    # Imported here because it takes a while, in which the engine is loading already.
    with uncollected():
        from server.offline.local_app import local_line_runner
    adopt_loggers()
    return (await local_line_runner(engine, config, name)).run


def _plan(args: argparse.Namespace, config: ServerConfig, name: str, engine: EngineConfig) -> Plan:
    """Make a plan of the flags.

    Raises:
        OutdraftError: a flag cannot be honoured.
    """
    if args.price_per_hour is not None and not 0.0 <= args.price_per_hour < float("inf"):
        raise ConfigError(f"price_per_hour: {args.price_per_hour} is no price.")
    num_asked = args.max_in_flight
    if num_asked is None:
        num_asked = _ASKED_PER_SEAT * engine.scheduler.max_num_seqs
    if num_asked < 1:
        raise ConfigError(f"max_in_flight: {num_asked} is below 1.")
    source = Source(args.input, format_of(args.input, args.input_format), config.max_body_bytes)
    output = Output(
        args.output, format_of(args.output, args.output_format), _existing(args), args.ordered
    )
    if same_file(args.input, args.output):
        raise ConfigError("output: it is the input; name another file.")
    recipe = _recipe(args, config, (*config.served_model_name, name)[0])
    return Plan(
        source,
        output,
        NumberedRecipe(recipe) if output.is_table else recipe,
        Bounds(num_asked, args.ordered),
        args.price_per_hour,
        ("outdraft", *sys.argv[1:]),
    )


def _existing(args: argparse.Namespace) -> Existing:
    if args.overwrite and args.resume:
        raise ConfigError("overwrite: it cannot begin anew and --resume.")
    if args.overwrite:
        return Existing.OVERWRITE
    return Existing.REFUSE if args.resume is False else Existing.RESUME


def _recipe(args: argparse.Namespace, config: ServerConfig, model: str) -> Recipe:
    sampling = given_sampling(args)
    if args.template is None:
        given = [n for n in _TEMPLATE_FLAGS if getattr(args, n)] + list(sampling)
        if given:
            raise ConfigError(f"{given[0]}: it goes with --template; lines say it themselves.")
        return OpenAIRecipe(config.max_body_bytes)
    if args.completion and args.system is not None:
        raise ConfigError("system: a text that is completed has no system's message.")
    schema = _schema(args.json_schema)
    shape = {} if schema is None else {"structured_outputs": {"json": schema}}
    return TemplateRecipe(
        model,
        PromptTemplate("template", args.template),
        None if args.system is None else PromptTemplate("system", args.system),
        is_completion=args.completion,
        options={**sampling, **shape},
        is_json=schema is not None,
        id_field=args.id_field,
        output_field=args.output_field or "output",
    )


def _schema(given: str | None) -> Any:
    """Read a JSON schema, given as text or as a file.

    Raises:
        ConfigError: it is no JSON, or there is no such file.
        InvalidRequestError: answers cannot be held to it.
    """
    if given is None:
        return None
    is_text = given.lstrip().startswith("{") or given in ("true", "false")
    text = given if is_text else text_or_file("json_schema", f"@{given.removeprefix('@')}")
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"json_schema: it is no JSON: {error}.") from error
    if not isinstance(schema, dict | bool):
        raise ConfigError("json_schema: a schema is an object.")
    json_schema_output(schema, param="json_schema")
    return schema
