"""Serve a model over HTTP.

octavo serve smollm2
octavo serve smollm2 --host 127.0.0.1 --port 8000 --api-key-file keys.txt --max-num-seqs 64
octavo serve Qwen/Qwen3-0.6B --api-server-count 4 --served-model-name qwen qwen3
octavo serve Qwen/Qwen3-0.6B --prefill-engines 1
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from octavo import env
from octavo.cli.flags import add_engine_flags, add_section_flags, engine_options, section_options
from octavo.cli.parser import CommandParser
from octavo.engine.options import engine_config
from octavo.errors import ConfigError
from octavo.lora_config import LoRAConfig
from octavo.observe.logging import log_to_stderr
from octavo.processes.supervisor import ServeOptions, Supervisor
from octavo.server.named_things import check_named_things
from octavo.server.settings import ServerSettings
from octavo.server_config import AdmissionConfig, ServerConfig, TransferConfig

COMMON = (
    *("--host", "--port", "--api-key-file", "--served-model-name", "--config", "--max-model-len", "--max-num-seqs"),
    *("--kv-cache-memory-bytes", "--gpu-memory-utilization", "--dtype", "--backend", "--api-server-count"),
)


def add_arguments(parser: CommandParser) -> None:
    parser.takes_model()
    parser.add_argument("--config", metavar="FILE", help="a YAML file of flags; those given here win over it")
    server = parser.add_argument_group("server options")
    for section in (ServerConfig, AdmissionConfig, TransferConfig, ServerSettings):
        add_section_flags(server, section, lambda name: True)
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> int:
    log_to_stderr("server")
    settings = ServerSettings(**section_options(args, ServerSettings)).with_keys(env.server_api_key())
    if not settings.served_model_name:
        settings = replace(settings, served_model_name=(args.model,))
    engine = engine_config(model=args.model, **engine_options(args))
    _check_adapters(engine.lora, settings)
    check_named_things(settings)
    options = ServeOptions(
        engine=engine,
        admission=AdmissionConfig(**section_options(args, AdmissionConfig)),
        transfer=TransferConfig(**section_options(args, TransferConfig)),
        server=ServerConfig(**section_options(args, ServerConfig)),
        settings=settings,
        model_name=settings.served_model_name[0],
    )
    return Supervisor(options).run()


def _check_adapters(lora: LoRAConfig, settings: ServerSettings) -> None:
    """Raise ConfigError for an adapter with the model's name, and for a root that is no folder."""
    for module in lora.modules():
        if module.lora_name in settings.served_model_name:
            raise ConfigError(
                f"lora_modules names an adapter {module.lora_name!r}, as the model is: rename one of them"
            )
    if lora.lora_root is not None and not Path(lora.lora_root).is_dir():
        raise ConfigError(f"lora_root is {lora.lora_root!r}, allowed is a folder that exists")
