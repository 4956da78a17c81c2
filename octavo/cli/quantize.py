"""octavo quantize IN OUT: a dense model as a smaller checkpoint, in the compressed-tensors format.

octavo quantize models/llama models/llama-int8 --scheme int8
octavo quantize smollm2 smollm2-int4 --scheme int4 --group-size 32
octavo quantize owner/name out --scheme fp8 --calibration texts.txt --report errors.json

The model reads a text first, and codes are chosen so that the products of its layers keep right; that takes torch, and
one layer is in memory at a time. With --no-calibration every number is rounded on its own, one tensor at a time.
Octavo, vLLM and transformers read what it writes. OUT appears when it is whole. `octavo eval` measures what the smaller
model has lost.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.cli.flags import check_counts, check_not_read, whole_number
from octavo.cli.parser import CommandParser
from octavo.cli.progress_bar import progress_bar
from octavo.cli.quantize_report import Report
from octavo.cli.text_file import read_text
from octavo.config import ModelConfig
from octavo.errors import ConfigError, TokenizerError

if TYPE_CHECKING:
    from octavo.models.quantized_copy import Codes, QuantizedCopy

KINDS = ("fp8", "int8", "int4")
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_CALIBRATION_TOKENS = 1 << 15
_ROOM = 1 << 24  # for the tokenizer and other small files


def add_arguments(parser: CommandParser) -> None:
    parser.usage = "octavo quantize IN OUT --scheme {fp8,int8,int4} [options]"
    parser.add_argument(
        "source", metavar="IN", help="a dense model: a folder, a packaged model, a hub id, a .gguf file"
    )
    parser.add_argument("target", metavar="OUT", help="the new folder")
    parser.add_argument(
        "--scheme", choices=KINDS, required=True, help="fp8 and int8: a scale an output; int4: in groups"
    )
    sizes = "inputs that share a scale of int4: 128, 64, 32 (default: the largest that divides every matrix)"
    parser.add_argument("--group-size", type=whole_number, metavar="N", help=sizes)
    kept = "type of what stays dense (default: as it is, bfloat16 where a GGUF file has it in blocks)"
    parser.add_argument("--dtype", choices=_DTYPES, default="auto", help=kept)
    text = "a text in UTF-8 that the model reads to choose the codes (default: docstrings of Python's standard library)"
    parser.add_argument("--calibration", metavar="FILE", help=text)
    parser.add_argument("--no-calibration", action="store_true", help="round every number on its own; needs no torch")
    read = f"tokens of the text (default: {_CALIBRATION_TOKENS:,})"
    parser.add_argument("--calibration-tokens", type=whole_number, default=_CALIBRATION_TOKENS, metavar="N", help=read)
    spared = "modules whose matrices stay dense, by name or a part of it: mlp.down_proj, model.layers.0"
    parser.add_argument("--ignore", nargs="+", action="extend", default=[], metavar="NAME", help=spared)
    parser.add_argument("--report", metavar="FILE", help="write the error of every matrix as JSON")


def run(args: argparse.Namespace) -> int:
    target = _target(args.target)
    check_counts(args, "calibration_tokens", least=2)
    if args.no_calibration and args.calibration is not None:
        raise ConfigError(f"--no-calibration is set, and --calibration is {args.calibration!r}: leave one of them out")
    check_not_read("--report", args.report, {"IN": args.source, "--calibration": args.calibration})
    if args.report is not None:
        _write_report(args.report, "")  # a name that cannot be written is told before the work
    from octavo.models.quantized_copy import QuantizedCopy

    copied = QuantizedCopy.of(args.source, args.scheme, args.group_size, args.dtype, args.ignore)
    _check_room(copied, target)
    codes = _codes(args, copied)
    report = Report(copied.dense_bytes)
    with _made_whole(target) as folder:
        _write(copied, codes, folder, report)
        report.num_bytes = _size(folder)
    print("\n".join(report.lines(copied.compression.scheme.name)))
    print(f"\n{target}: {report.size_line}\nTo see what it lost: octavo eval {target} --reference {args.source}")
    if args.report is not None:
        facts = {"source": args.source, "scheme": args.scheme, **report.facts()}
        _write_report(args.report, json.dumps(facts, indent=2))
    return 0


def _codes(args: argparse.Namespace, copied: QuantizedCopy) -> Codes:
    """How a matrix is quantised."""
    from octavo.models.quantized_copy import nearest

    if args.no_calibration:
        return nearest
    if find_spec("torch") is None:
        raise ConfigError(
            "calibration computes with torch, which is not installed: pip install 'octavo[reference]', or set "
            "--no-calibration"
        )
    from octavo.models.architecture import allowed_model_len
    from octavo.models.calibration import Calibration
    from octavo.text.calibration_text import packaged_text, windows
    from octavo.text.tokenizer import open_tokenizer

    text = packaged_text() if args.calibration is None else read_text("--calibration", args.calibration)
    try:
        tokenizer = open_tokenizer(ModelConfig(model=args.source), lambda: copied.checkpoint.tokenizer_source)
    except TokenizerError as error:
        raise ConfigError(
            f"calibration needs the model's tokenizer ({str(error).partition(';')[0]}): add it, or set --no-calibration"
        ) from None
    assert tokenizer is not None, "skip_tokenizer_init is no option here"
    longest = allowed_model_len(copied.checkpoint.architecture, None)
    return Calibration(copied, windows(tokenizer, text, longest, args.calibration_tokens))


def _write(copied: QuantizedCopy, codes: Codes, folder: Path, report: Report) -> None:
    from octavo.models.safetensors_writer import SafetensorsWriter, total_bytes
    from octavo.text.tokenizer_files import write_tokenizer

    source = copied.checkpoint.tokenizer_source
    if source is not None:
        write_tokenizer(source, folder)
    (folder / "config.json").write_text(json.dumps(copied.config, indent=2), encoding="utf-8")
    layout = copied.layout
    with (
        SafetensorsWriter(folder, layout) as writer,
        progress_bar("written", total_bytes(layout), is_bytes=True) as advance,
    ):
        for tensors, error in copied.written(codes):
            for name, tensor in tensors.items():
                writer.write(name, tensor)
                advance(tensor.data.nbytes)
            if error is not None:
                report.add(error)


def _target(name: str) -> Path:
    target = Path(name)
    try:
        if os.path.lexists(target):
            raise ConfigError(f"OUT is {name!r}, which exists: name a new folder, or remove it")
        if not target.parent.is_dir():
            raise ConfigError(f"OUT is {name!r}, but there is no folder {str(target.parent)!r}: make it first")
    except (OSError, ValueError) as error:  # a name too long, a NUL
        raise ConfigError(f"OUT is {name[:80]!r}, which cannot be a folder's name: {error}") from None
    return target


def _check_room(copied: QuantizedCopy, target: Path) -> None:
    from octavo.models.safetensors_writer import total_bytes

    needed, free = total_bytes(copied.layout) + _ROOM, shutil.disk_usage(target.parent).free
    if needed > free:
        raise ConfigError(
            f"OUT is {str(target)!r}, where {free / 1e9:,.2f} GB are free, and the model takes {needed / 1e9:,.2f} GB: "
            "free the rest, or name a folder on another disk"
        )


@contextmanager
def _made_whole(target: Path) -> Iterator[Path]:
    """A folder beside the target, which becomes it at the end, or is removed if something fails."""
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o777 & ~_umask())
        if os.path.lexists(target):
            raise ConfigError(f"OUT is {str(target)!r}, which something has made meanwhile: name another folder")
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _write_report(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--report {path!r} cannot be written: {error}") from None
