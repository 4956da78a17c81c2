"""The page at `/`: a chat with the model, and what the engine is doing meanwhile; one file, see page.html.

It is sent with a content security policy that lets its own script and style run, by their hashes, and nothing else:
whatever a model may write into it, the browser loads nothing and talks to nobody but this server.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from functools import cache
from importlib.resources import files

CONTENT_TYPE = "text/html; charset=utf-8"


_NO_ROOT = b'<meta name="root-path" content="">'


@cache
def page(root_path: str = "") -> bytes:
    """The page, as it is sent. root_path: what stands before all of the server's paths where browsers see it."""
    text = files("octavo.server").joinpath("page.html").read_bytes()
    assert text.count(_NO_ROOT) == 1, "page.html has one place for the root path"
    return text.replace(_NO_ROOT, f'<meta name="root-path" content="{html.escape(root_path)}">'.encode())


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
