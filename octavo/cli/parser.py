"""The parser of every command: argparse, with a few conveniences.

    octavo serve --model smollm2 --max_model_len 4k       underscores are dashes; the model is a word or a flag
    octavo serve smollm2 --prot 80                        error: there is no flag --prot; did you mean --port?
    octavo serve --help, --help=all, --help=cache         common flags, all flags, flags that match a word

It raises ConfigError where argparse would print its usage and exit.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import itertools
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from octavo.cli.words import OF_ENGINES, with_dashes, without_foreign_flags, words_of_file
from octavo.errors import ConfigError
from octavo.vllm_options import NotHere

#: a command with at most this many flags shows them all
_FEW_FLAGS = 16


class CommandParser(argparse.ArgumentParser):
    """common: the flags that `--help` shows."""

    def __init__(self, name: str, text: str | None, common: Sequence[str] = ()) -> None:
        super().__init__(
            prog=f"octavo {name}",
            usage=f"octavo {name} [options]",
            description=text,
            allow_abbrev=False,
            add_help=False,
            formatter_class=_HelpFormatter,
        )
        self._common = common
        self._model_dest: str | None = None
        self._default_model: str | None = None
        self._needs_model = False
        self._takes_prompts = False
        self._notes: set[str] = set()
        self._foreign: dict[str, NotHere] = {}

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}{'' if message.endswith('?') else ';'} `{self.prog} --help` says more")

    def lacks(self, flags: Mapping[str, NotHere]) -> None:
        """Know these flags of vLLM's command, to say what takes their place."""
        self._foreign.update(flags)

    # The model: a word, or a flag

    def takes_model(
        self,
        text: str = "a packaged model's name (smollm2), a folder, a hub id or a .gguf file",
        *,
        flags: Sequence[str] = ("--model",),
        default: str | None = None,
        is_needed: bool = True,
        takes_prompts: bool = False,
    ) -> None:
        """The first word is the model, unless a flag names it. takes_prompts: further words are `args.prompt`."""
        named = self.add_argument(*flags, metavar="MODEL", help=text)
        self.add_argument("words", nargs="*", help=argparse.SUPPRESS)
        self._model_dest, self._default_model = named.dest, default
        self._needs_model = is_needed and default is None
        self._takes_prompts = takes_prompts
        model = "MODEL" if self._needs_model else "[MODEL]"
        self.usage = f"{self.prog} {model}{' [PROMPT ...]' if takes_prompts else ''} [options]"

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse the words. Raises ConfigError."""
        words = with_dashes(argv)
        args = self._parse(words)
        if getattr(args, "config", None) is not None:
            args = self._parse([*self._words_of_file(args, words), *words])
        if self._model_dest is not None:
            self._settle_model(args, self._model_dest)
        for note in sorted(self._notes):
            print(f"octavo: {note}", file=sys.stderr)
        return args

    def _parse(self, argv: Sequence[str]) -> argparse.Namespace:
        has_engine_flags = self.action_of("--max-model-len") is not None
        if table := self._foreign | (OF_ENGINES if has_engine_flags else {}):
            argv = without_foreign_flags(argv, table, self.has_flag, self._notes.add)
        pairs = [(word.removesuffix("=--"), "--") for word in argv if word.endswith("=--")]
        for word, following in [*itertools.pairwise(argv), *pairs]:
            action = self.action_of(word)
            if following == "--" and action is not None and action.nargs is None:
                self.error(f"argument {word}: expected one argument, got --")  # argparse would accept an empty value
        args, unknown = self.parse_known_intermixed_args(argv)
        for word in unknown:
            self.error(self._no_such_flag(word) if word.startswith("-") else f"unexpected argument {word!r}")
        return args

    def _words_of_file(self, args: argparse.Namespace, argv: Sequence[str]) -> list[str]:
        """Words from the --config file for flags not on the command line. Errors name the file."""
        given = {id(self.action_of(word.partition("=")[0])) for word in argv}
        if args.words:
            given.add(id(self.action_of("--model")))
        words = words_of_file(args.config, self.action_of, lambda action: id(action) in given)
        try:
            self._parse(words)
        except ConfigError as error:
            raise ConfigError(f"--config {args.config}: {error}") from None
        return words

    def _settle_model(self, args: argparse.Namespace, dest: str) -> None:
        words: list[str] = args.words
        named: str | None = getattr(args, dest)
        if named is None:
            model, rest = (words[0], words[1:]) if words else (self._default_model, [])
        elif words and (words[0] == named or not self._takes_prompts or _is_model_here(words[0])):
            if words[0] != named:
                self.error(f"the model is {words[0]!r} as the first word and {named!r} as a flag: give one")
            model, rest = named, words[1:]
        else:
            model, rest = named, words
        if model is None and self._needs_model:
            self.error("no model given: it is the first word, as in `" + self.prog + " smollm2`, or follows --model")
        if model == "":
            self.error("the model is '', allowed are a packaged model's name, a folder, a hub id and a .gguf file")
        if rest and not self._takes_prompts:
            self.error(f"unexpected argument {rest[0]!r}: the only positional argument is the model, {model!r}")
        setattr(args, dest, model)
        args.prompt = rest

    def action_of(self, flag: str) -> argparse.Action | None:
        return self._option_string_actions.get(flag)

    def has_flag(self, flag: str) -> bool:
        return flag in self._option_string_actions

    def _no_such_flag(self, word: str) -> str:
        flag = word.partition("=")[0]
        close = difflib.get_close_matches(flag, [one for one in self._option_string_actions if len(one) > 2], 1)
        return f"there is no flag {flag}" + (f"; did you mean {close[0]}?" if close else "")

    # Help

    def help_for(self, word: str) -> str:
        """word: "" for common flags, "all", or a word to find in group titles, flags and their help."""
        flags = [action for action in self._actions if action.option_strings]
        if word == "all" or (not word and (not self._common or len(flags) <= _FEW_FLAGS)):
            return self._page(self._groups_with(lambda group, action: True), "")
        if not word:
            common = [_in_short(action) for flag in self._common if (action := self.action_of(flag)) is not None]
            more = f"All {len(flags)} flags: `{self.prog} --help=all`; those with a word in them: `--help=WORD`."
            return self._page([("options", None, common)], more)
        wanted = word.lower().replace("_", "-").strip("-")
        groups = self._groups_with(
            lambda group, action: (
                wanted == str(group.title).lower()
                or any(wanted in flag for flag in action.option_strings)
                or wanted in str(action.help).lower()
            )
        )
        if not groups:
            raise ConfigError(f"no flag of `{self.prog}` matches {word!r}; --help=all shows them all")
        return self._page(groups, "", has_head=False)

    def _groups_with(self, has: Any) -> list[tuple[str | None, str | None, list[argparse.Action]]]:
        found = []
        for group in self._action_groups:
            actions = [one for one in group._group_actions if one.option_strings and has(group, one)]
            if actions:
                found.append((group.title, group.description, actions))
        return found

    def _page(
        self, groups: Sequence[tuple[str | None, str | None, list[argparse.Action]]], foot: str, has_head: bool = True
    ) -> str:
        formatter = self._get_formatter()
        if has_head:
            formatter.add_usage(self.usage, [], [])
            formatter.add_text(self.description)
        for title, description, actions in groups:
            formatter.start_section(title)
            formatter.add_text(description)
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text(foot)
        return formatter.format_help()


def _in_short(action: argparse.Action) -> argparse.Action:
    """A copy with only the first clause of its help, and its default."""
    text, bracket, default = str(action.help).rpartition(" (default: ")
    short = copy.copy(action)
    short.help = (text or default).partition("; ")[0] + (bracket + default if text else "")
    return short


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps paragraphs that end in a full stop, leaves examples as written, and widens the flag column."""

    def __init__(self, prog: str) -> None:
        columns = shutil.get_terminal_size((110, 24)).columns
        super().__init__(prog, max_help_position=30, width=min(110, max(60, columns - 1)))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(textwrap.fill(one, width) if one.endswith(".") else one for one in paragraphs)


def help_word(argv: Sequence[str]) -> str | None:
    """The word that `--help` asks for: "" if alone, X for `--help=X`; None without the flag."""
    for word in argv:
        if word == "--":
            return None
        if word in ("-h", "--help"):
            return ""
        if word.startswith("--help="):
            return word.removeprefix("--help=")
    return None


def _is_model_here(word: str) -> bool:
    """Whether a word names a model on this machine, and so is unlikely to be a prompt."""
    from octavo.models.packaged import PACKAGED_MODELS

    is_file = word.endswith(".gguf") and os.path.isfile(word)
    return word in PACKAGED_MODELS or is_file or os.path.isfile(os.path.join(word, "config.json"))
