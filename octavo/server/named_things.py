"""What a server's settings name, checked before a model is loaded: with a large one that saves minutes."""

from __future__ import annotations

from octavo.server.settings import ServerSettings


def check_named_things(settings: ServerSettings) -> None:
    """Raises ConfigError. Imports only what a given name needs."""
    if settings.tool_call_parser is not None:
        from octavo.text.answers.style import answer_style

        answer_style(None, settings.tool_call_parser)  # refuses an unknown name
    if settings.responses_store is not None:
        from octavo.server.responses.store_file import check_store

        check_store(settings.responses_store)
