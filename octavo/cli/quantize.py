"""octavo quantize IN OUT: a dense model as a smaller checkpoint, or a GGUF file as a smaller one.

octavo quantize models/llama models/llama-int8 --scheme int8
octavo quantize smollm2 smollm2-int4 --scheme int4 --group-size 32
octavo quantize owner/name out --scheme fp8 --calibration texts.txt --report errors.json
octavo quantize model-f16.gguf model-q8.gguf --scheme q8_0

The model reads a text first, and codes are chosen so that the products of its layers stay right; that takes torch. With
--no-calibration, and in a GGUF file, which takes the package gguf, every number is rounded on its own. A new folder is
in the compressed-tensors format, which vLLM and transformers read too. OUT appears when it is whole. `octavo eval`
measures what it has lost.
"""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.cli.flags import check_counts, check_not_read, whole_number
from octavo.cli.new_target import check_room, made_whole, new_target
from octavo.cli.parser import CommandParser
from octavo.cli.progress_bar import progress_bar
from octavo.cli.quantize_report import Report
from octavo.cli.text_file import read_text
from octavo.config import ModelConfig
from octavo.errors import ConfigError, TokenizerError

if TYPE_CHECKING:
    from octavo.models.quantized_copy import Codes, QuantizedCopy

KINDS = ("fp8", "int8", "int4")
GGUF_KINDS = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_SAMPLES, _SAMPLE_TOKENS = 32, 512
_TOKEN_WEIGHTS = ("gradient", "equal")


def add_arguments(parser: CommandParser) -> None:
    parser.usage = "octavo quantize IN OUT --scheme {fp8,int8,int4,q8_0,...} [options]"
    parser.add_argument(
        "source", metavar="IN", help="a dense model: a folder, a packaged model, a hub id, a .gguf file"
    )
    parser.add_argument("target", metavar="OUT", help="the new folder, or the new .gguf file")
    kinds = "int4: in groups; q...: a GGUF file, from another one"
    parser.add_argument("--scheme", choices=(*KINDS, *GGUF_KINDS), required=True, help=kinds)
    sizes = "inputs that share a scale of int4: 128, 64, 32 (default: the largest that fits)"
    parser.add_argument("--group-size", type=whole_number, metavar="N", help=sizes)
    asymmetric = "int4: a zero point for each group, W4A16_ASYM"
    parser.add_argument("--asymmetric", action="store_true", help=asymmetric)
    kept = "type of what stays dense (default: as it is, bfloat16 for blocks)"
    parser.add_argument("--dtype", choices=_DTYPES, default="auto", help=kept)
    text = "the text that the model reads (default: docstrings of Python's library)"
    parser.add_argument("--calibration", metavar="FILE", help=text)
    parser.add_argument("--no-calibration", action="store_true", help="round every number on its own; needs no torch")
    samples = f"samples of the text (default: {_SAMPLES})"
    parser.add_argument("--num-calibration-samples", type=whole_number, metavar="N", help=samples)
    longest = f"tokens of a sample (default: {_SAMPLE_TOKENS}, or the model's context)"
    parser.add_argument("--max-seq-length", type=whole_number, metavar="N", help=longest)
    counts = "how tokens count: gradient (default) or equal"
    parser.add_argument("--token-weights", choices=_TOKEN_WEIGHTS, metavar="HOW", help=counts)
    spared = "modules that stay dense: mlp.down_proj, model.layers.0"
    parser.add_argument("--ignore", nargs="+", action="extend", default=[], metavar="NAME", help=spared)
    parser.add_argument("--report", metavar="FILE", help="write the error of every matrix as JSON")


def run(args: argparse.Namespace) -> int:
    target = new_target(args.target)
    check_counts(args, "num_calibration_samples", "max_seq_length", least=1)
    for flag, given in _calibration_flags(args).items():
        if args.no_calibration and given is not None:
            raise ConfigError(f"--no-calibration is set, and {flag} is {given!r}: leave one of them out")
    check_not_read("--report", args.report, {"IN": args.source, "--calibration": args.calibration})
    if args.report is not None:
        _write_report(args.report, "")  # a name that cannot be written is told before the work
    write = _write_gguf if args.scheme in GGUF_KINDS else _write_folder
    report = write(args, target)
    print("\n".join(report.lines()))
    print(f"\n{target}: {report.size_line}\nTo see what it lost: octavo eval {target} --reference {args.source}")
    if args.report is not None:
        facts = {"source": args.source, "scheme": args.scheme, **report.facts()}
        _write_report(args.report, json.dumps(facts, indent=2))
    return 0


def _calibration_flags(args: argparse.Namespace) -> dict[str, str | int | None]:
    """Each flag that says how to calibrate, with what is given."""
    return {
        "--calibration": args.calibration,
        "--token-weights": args.token_weights,
        "--num-calibration-samples": args.num_calibration_samples,
        "--max-seq-length": args.max_seq_length,
    }


def _write_folder(args: argparse.Namespace, target: Path) -> Report:
    from octavo.models.quantized_copy import QuantizedCopy
    from octavo.models.safetensors_writer import SafetensorsWriter, total_bytes
    from octavo.text.tokenizer_files import write_tokenizer

    if target.suffix == ".gguf":
        raise ConfigError(f"OUT is {str(target)!r}, but {args.scheme} makes a folder; GGUF has {', '.join(GGUF_KINDS)}")
    given = (args.group_size, args.dtype, args.ignore, args.asymmetric)
    copied = QuantizedCopy.of(args.source, args.scheme, *given)
    layout, source = copied.layout, copied.checkpoint.tokenizer_source
    check_room(target, total_bytes(layout))
    codes, how = _codes(args, copied)
    report = Report(copied.compression.scheme.name + how, copied.dense_bytes)
    with made_whole(target) as folder:
        if source is not None:
            write_tokenizer(source, folder)
        (folder / "config.json").write_text(json.dumps(copied.config, indent=2), encoding="utf-8")
        with (
            SafetensorsWriter(folder, layout) as writer,
            progress_bar("written", total_bytes(layout), is_bytes=True) as advance,
        ):
            for tensors, error in copied.written(codes):
                for name, tensor in tensors.items():
                    writer.write(name, tensor)
                    advance(tensor.data.nbytes)
                report.add(error)
        report.num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return report


def _codes(args: argparse.Namespace, copied: QuantizedCopy) -> tuple[Codes, str]:
    """How a matrix is quantised, and the same in words."""
    from octavo.models.quantized_copy import nearest

    if args.no_calibration:
        return nearest, ""
    if find_spec("torch") is None:
        raise ConfigError(
            "calibration computes with torch, which is not installed: pip install 'octavo[reference]', or set "
            "--no-calibration"
        )
    from octavo.models.calibration import Calibration, token_weights
    from octavo.models.context_len import allowed_model_len
    from octavo.text.calibration_text import packaged_text, windows
    from octavo.text.tokenizer import open_tokenizer

    longest = allowed_model_len(copied.checkpoint.architecture, None)
    if (asked := args.max_seq_length or 0) > longest:
        raise ConfigError(f"--max-seq-length is {asked}, allowed are up to {longest} tokens, the model's context")
    text = packaged_text() if args.calibration is None else read_text("--calibration", args.calibration)
    try:
        tokenizer = open_tokenizer(ModelConfig(model=args.source), lambda: copied.checkpoint.tokenizer_source)
    except TokenizerError as error:
        raise ConfigError(
            f"calibration needs the model's tokenizer ({str(error).partition(';')[0]}): add it, or set --no-calibration"
        ) from None
    assert tokenizer is not None, "skip_tokenizer_init is no option here"
    samples = windows(tokenizer, text, asked or min(longest, _SAMPLE_TOKENS), args.num_calibration_samples or _SAMPLES)
    how = f", calibrated with {len(samples)} samples of {samples.shape[1]} tokens"
    if args.token_weights == "equal":
        return Calibration(copied, samples), how
    with progress_bar("tokens weighed", samples.size) as advance:
        return Calibration(copied, samples, token_weights(copied, samples, advance)), how


def _write_gguf(args: argparse.Namespace, target: Path) -> Report:
    for flag, is_given in {
        "--group-size": args.group_size is not None,
        "--asymmetric": args.asymmetric,
        "--dtype": args.dtype != "auto",
        "--ignore": bool(args.ignore),
        **{flag: given is not None for flag, given in _calibration_flags(args).items()},
    }.items():
        if is_given:
            raise ConfigError(f"{flag} is given, but {args.scheme} is of GGUF, which has none: leave it out")
    if target.suffix != ".gguf":
        raise ConfigError(f"OUT is {str(target)!r}, but {args.scheme} makes a file: name one that ends in .gguf")
    if find_spec("gguf") is None:
        raise ConfigError("writing GGUF takes the package gguf, which is not installed: pip install gguf")
    from octavo.models.gguf_copy import GGUFCopy

    copied = GGUFCopy.of(args.source, args.scheme)
    check_room(target, copied.num_bytes)
    report = Report(f"GGUF ({args.scheme.upper()})", copied.dense_bytes)
    with made_whole(target, "model.gguf") as folder:
        with progress_bar("written", copied.num_bytes, is_bytes=True) as advance:
            for num_bytes, error in copied.written(folder / "model.gguf"):
                advance(num_bytes)
                report.add(error)
        report.num_bytes = copied.num_bytes
    return report


def _write_report(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--report {path!r} cannot be written: {error}") from None
