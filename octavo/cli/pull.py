"""Download a model from the Hugging Face hub: only the files that Octavo needs.

octavo pull Qwen/Qwen3-0.6B
octavo pull unsloth/Qwen3-0.6B-GGUF:Qwen3-0.6B-Q8_0.gguf  one file
"""

from __future__ import annotations

import argparse
import os
import sys

from octavo.cli.parser import CommandParser
from octavo.errors import ConfigError


def add_arguments(parser: CommandParser) -> None:
    parser.takes_model("a hub id, OWNER/NAME or OWNER/NAME:FILE.gguf")
    parser.add_argument("--revision", metavar="TEXT", help="branch, tag or commit; default: the main branch")


def run(args: argparse.Namespace) -> int:
    from octavo.models.hub import download_model, is_hub_name
    from octavo.models.packaged import PACKAGED_MODELS, locate_packaged_model

    if args.model in PACKAGED_MODELS:
        return _is_here(f"{args.model} is a Python package at {locate_packaged_model(args.model)}")
    if os.path.exists(args.model):
        return _is_here(f"{args.model} is a {'folder' if os.path.isdir(args.model) else 'file'} on this machine")
    if not is_hub_name(args.model):
        raise ConfigError(f"the model is {args.model!r}, allowed is a hub id, OWNER/NAME or OWNER/NAME:FILE.gguf")
    print(download_model(args.model, args.revision))
    return 0


def _is_here(text: str) -> int:
    print(f"octavo: {text}; there is nothing to download", file=sys.stderr)
    return 0
