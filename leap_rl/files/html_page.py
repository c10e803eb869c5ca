"""Makes one HTML file of a Markdown text with its pictures: it needs nothing else, and asks no network for anything."""

import base64
import html
from collections.abc import Mapping

_STYLE = """
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; color: #222; }
img { max-width: 100%; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: left; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; }
"""
# A browser then loads nothing and runs nothing, whatever a name from elsewhere may have brought into the text.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def html_page(
    title: str, markdown: str, pictures: Mapping[str, bytes], appendix: Mapping[str, str], refresh: int | None = None
) -> str:
    """Returns a page.

    ``pictures`` are the PNGs and GIFs that the text names, and ``appendix`` further texts by title, which are shown as
    they are, folded away. A browser that has it open reads it again every ``refresh`` seconds.
    """
    from markdown_it import MarkdownIt  # is rich's as well; half of our commands do without either

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    for token in tokens:
        for child in token.children or []:
            data = pictures.get(str(child.attrs.get("src")))
            if data is not None:
                kind = "png" if data.startswith(b"\x89PNG") else "gif"
                child.attrs["src"] = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    folded = "".join(
        f"<details><summary>{html.escape(name)}</summary><pre>{html.escape(text)}</pre></details>\n"
        for name, text in appendix.items()
    )
    again = f'<meta http-equiv="refresh" content="{refresh}">\n' if refresh else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{again}'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"{parser.renderer.render(tokens, parser.options, {})}{folded}</body>\n</html>\n"
    )
