"""The report as one HTML file, pictures included, to send or to put anywhere."""

import base64
import re

import markdown

from distgan import storage

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; font-size: 0.9rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: 0.35rem 0.7rem; text-align: left; }
img { max-width: 100%; } code { background: #f3f3f3; padding: 0 0.2em; }
"""
_IMAGE = re.compile(r'src="([^":]+\.png)"')
_LINK = re.compile(r'<a href="([^":]+\.png)">([^<]*)</a>')


def to_html(text: str, folder: str) -> str:
    """Markdown to a whole page; pictures below `folder` are put into it.

    A link to a picture becomes a part that opens and shows it.
    """
    body = markdown.markdown(text, extensions=["tables"])
    body = _LINK.sub(r'<details><summary>\2</summary><img src="\1" alt="\2"></details>', body)
    body = _IMAGE.sub(lambda found: f'src="{_as_data(storage.join(folder, found[1]))}"', body)
    title = text.partition("\n")[0].lstrip("# ")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _as_data(path: str) -> str:
    return "data:image/png;base64," + base64.b64encode(storage.read_bytes(path)).decode()
