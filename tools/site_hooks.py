"""Hooks of mkdocs: references of docstrings, such as :meth:`record`, are shown as code."""

import re
from typing import Any


def on_page_content(html: str, **_: Any) -> str:
    """Removes roles and the tildes of shortened names from a page."""
    return re.sub(r":(?:meth|class|func):<code>~?", "<code>", html)
