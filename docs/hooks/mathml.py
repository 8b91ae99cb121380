"""Equations as MathML, at build time: pages need no script and nothing from another host to show them."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace the equations that `pymdownx.arithmatex` has found on a page."""

    def mathml(found: re.Match[str]) -> str:
        tag, tex = found.groups()
        markup = convert(html.unescape(tex).strip(), display="block" if tag == "div" else "inline")
        return f'<{tag} class="equation">{markup}</{tag}>'

    return _EQUATION.sub(mathml, content)
