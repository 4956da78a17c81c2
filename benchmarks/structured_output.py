"""What structured output costs: compiling, the first token, the mask of a step, and a batch with and without.

    python -m benchmarks.structured_output [--model smollm2]
    python -m benchmarks.structured_output --model examples/configs/qwen3-0.6b --load-format dummy     # on a GPU

compile       a schema of a hundred lines, new and known; until the first mask is there
masks         of a step of 1, 16 and 64 rows, which a GPU's forward pass hides
batch         milliseconds a step, one form for all rows: .* in the whole, so that all else is equal

A model of random weights gets a vocabulary of its size that spells every text, of words with and without signs and of
parts of characters, as real ones are. That decides how long a mask takes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from octavo import LLM, SamplingParams
from octavo.engine.asked_grammars import grammar_vocabulary
from octavo.messages import NewRow
from octavo.structured.compiler import GrammarCompiler
from octavo.structured.grammar import grammar_text
from octavo.structured.rows import ConstrainedRows
from octavo.structured_outputs import StructuredOutputsParams
from octavo.text.tokenizer import named_tokenizer

ANY = {"regex": "(?s:.*)"}
NUM_STEPS = 48


def long_schema(number: int) -> dict[str, Any]:
    """A hundred lines, if each property is one."""
    people = {f"person{i}": {"$ref": "#/$defs/person"} for i in range(60)}
    fields = {f"field{i}": {"type": "string", "maxLength": 40} for i in range(20)}
    numbers = {f"number{i}": {"type": "integer", "minimum": 0} for i in range(20)}
    person = {"type": "object", "properties": {**fields, **numbers}, "required": list(fields)}
    title = {"type": "string", "maxLength": 100 + number}
    return {"type": "object", "properties": {"title": title, **people}, "$defs": {"person": person}}


def milliseconds(run: Callable[[], Any], times: int = 1) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - begin) / times * 1e3


def time_compiling(compiler: GrammarCompiler) -> str:
    def first_mask(number: int) -> None:
        text = grammar_text(StructuredOutputsParams(json=long_schema(number)))
        compiler.matcher(text).compute_bitmask()

    print(f"vocabulary, once             {milliseconds(lambda: first_mask(0)):8.2f} ms")
    print(f"100-line schema, new         {min(milliseconds(lambda n=n: first_mask(n)) for n in range(1, 6)):8.2f} ms")
    print(f"100-line schema, known       {milliseconds(lambda: first_mask(1), 20):8.2f} ms")
    return grammar_text(StructuredOutputsParams(json=long_schema(1)))


def time_masks(compiler: GrammarCompiler, text: str, num_rows: int) -> float:
    """A step's masks and forced tokens, while answers are drawn at random."""
    rows, draw = ConstrainedRows(), np.random.default_rng(0)
    rows.compiler = compiler
    for row in range(num_rows):
        rows.enter(NewRow(row, [1], 1, SamplingParams(), seed=0, sample_index=0, grammar=text))
    outputs = [np.zeros(0, np.int32) for _ in range(num_rows)]
    seconds = 0.0
    for _ in range(NUM_STEPS):
        begin = time.perf_counter()
        masks = rows.masks(range(num_rows), outputs)
        seconds += time.perf_counter() - begin
        for row, mask in enumerate(masks):
            (allowed,) = np.nonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            longer = outputs[row][:0] if not len(allowed) else np.append(outputs[row], draw.choice(allowed))
            outputs[row] = longer.astype(np.int32)  # one that has ended begins anew
        begin = time.perf_counter()
        for row, found in enumerate(rows.following(range(num_rows), outputs, [64] * num_rows)):
            outputs[row] = np.append(outputs[row], np.array([one for one in found if one >= 0], np.int32))
        seconds += time.perf_counter() - begin
    return seconds / NUM_STEPS * 1e3


def time_batches(model: str, load_format: str, num_pairs: int) -> None:
    """Free and with a form, in turns. The ratio is the median of the pairs', and cpu that of this thread's time, which
    other work on the machine disturbs less."""
    with LLM(model, load_format=load_format, max_model_len=512) as llm:
        for num in (1, 16, 64):
            prompts = [list(range(100 + i, 132 + i)) for i in range(num)]
            taken: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
            for turn in range(2 * num_pairs + 2):
                has_form = bool(turn % 2) != bool(turn // 2 % 2)
                form = ANY if has_form else None
                params = SamplingParams(max_tokens=128, ignore_eos=True, structured_outputs=form, temperature=0)
                begin = time.perf_counter(), time.thread_time()
                llm.generate(prompts, params, use_tqdm=False)
                taken[has_form].append((time.perf_counter() - begin[0], time.thread_time() - begin[1]))
            free, formed = (np.array(each[1:]) / 128 * 1e3 for each in taken.values())
            wall, cpu = np.median(formed / free, axis=0) - 1
            times = f"{np.median(free[:, 0]):.3f} ms a step free, {np.median(formed[:, 0]):.3f} with a form"
            print(f"batch of {num:2}: {times}; pairs {wall:+.1%}, cpu {cpu:+.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--load-format", default="auto", help="dummy: a folder with a config, and random weights")
    parser.add_argument("--pairs", type=int, default=5, help="of batches, free and with a form")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = args.model
        if args.load_format == "dummy":
            model = str(shutil.copytree(model, Path(scratch) / "model"))
            make_tokenizer(Path(model))
        time_grammars(model)
        time_batches(model, args.load_format, args.pairs)


def make_tokenizer(folder: Path) -> None:
    """A token for each byte, then words: of fifteen eight begin with a space, two with signs, one has loose bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    signs = ['"', "Ċ", '":', '",Ġ"', "{", "}Ċ", "Ġ(", "\\", "ĉ", "')"]

    def word(index: int) -> str:
        letters, rest = "", index + 26**3
        while rest:
            rest, letter = divmod(rest, 26)
            letters += chr(ord("a") + letter)
        kind = index % 15
        start = "Ġ" if kind < 8 else signs[index // 15 % len(signs)] if kind < 10 else ""
        return start + letters + (alphabet[-1 - index // 15 % 60] if kind == 14 else "")

    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    vocabulary = {**{text: index for index, text in enumerate(alphabet)}, **{word(i): i for i in range(256, size - 1)}}
    tokenizer = Tokenizer(models.BPE(vocab={**vocabulary, "</s>": size - 1}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}')


def time_grammars(model: str) -> None:
    tokenizer = named_tokenizer(model)
    ends = [0 if tokenizer.eos_token_id is None else tokenizer.eos_token_id]
    compiler = GrammarCompiler(lambda: grammar_vocabulary(tokenizer, tokenizer.vocab_size, ends))
    text = time_compiling(compiler)
    for num_rows in (1, 16, 64):
        print(f"masks and jumps of {num_rows:2} rows   {time_masks(compiler, text, num_rows):8.2f} ms")
    print(json.dumps({"schema bytes": len(text), "tokens": tokenizer.vocab_size}))


if __name__ == "__main__":
    main()
