"""One HTML file with everything in it: data, style, script, and no reference to elsewhere.

The data are JSON, deflated, as base64: smaller by two thirds, and free of any
character that HTML gives a meaning to. What a model wrote reaches the document
as text only, and a content security policy lets no other script than the
page's own run, nor anything be loaded.
"""

import base64
import hashlib
import html
import json
import re
import zlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

SCRIPTS = (
    "page.js",
    "charts.js",
    "overview.js",
    "tokens.js",
    "list.js",
    "trajectory.js",
    "side.js",
    "tables.js",
    "main.js",
)
"""In the order in which they are put together; formatted with prettier, 100 columns."""
_PLACE = re.compile(r"\{\{(\w+)\}\}")


def render(title: str, data: Mapping[str, Any]) -> str:
    """The page.

    Args:
        title: Plain text.
        data: What `skyrl_kernel.report.build` has gathered.
    """
    script = "\n".join(_asset(name) for name in SCRIPTS)
    style = _asset("page.css")
    parts = {
        "policy": _policy(script, style),
        "title": html.escape(title),
        "style": style,
        "script": script,
        "data": pack(data),
    }
    return _PLACE.sub(lambda match: parts[match[1]], _asset("page.html"))


def pack(data: Mapping[str, Any]) -> str:
    """Deflated JSON in base64; the page's script unpacks it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode("utf-8", "replace"), 6)).decode()


def unpack(page: str) -> dict[str, Any]:
    """The data in a page that `render` made."""
    start = page.index(">", page.index('<script id="data"')) + 1
    packed = page[start : page.index("</script>", start)]
    data: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return data


def _policy(script: str, style: str) -> str:
    return f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return files("skyrl_kernel.report").joinpath(name).read_text(encoding="utf-8")
