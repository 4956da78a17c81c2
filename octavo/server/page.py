"""The page at `/`: a chat with the model, and what the engine is doing meanwhile; one file, see page.html.

It is sent with a content security policy that lets its own script and style run, by their hashes, and nothing else:
whatever a model may write into it, the browser loads nothing and talks to nobody but this server.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

CONTENT_TYPE = "text/html; charset=utf-8"


@cache
def page() -> bytes:
    """The page, as it is sent."""
    return files("octavo.server").joinpath("page.html").read_bytes()


@cache
def content_security_policy() -> str:
    """The value of the Content-Security-Policy header to send it with."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash_of('script')}",
            f"style-src {_hash_of('style')}",
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _hash_of(tag: str) -> str:
    """Of the text of the page's one element of this name."""
    texts = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), page(), re.DOTALL)
    assert len(texts) == 1, f"page.html has {len(texts)} {tag} elements; the policy is made for one"
    return f"'sha256-{base64.b64encode(hashlib.sha256(texts[0]).digest()).decode()}'"
