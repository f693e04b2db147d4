"""The frame of a report's page, and how templates are filled. jinja2 escapes everything, and nothing is a record's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Samples = Sequence[tuple[str, Sequence[str]]]
"""Public prompts, each with what the trained model wrote after it."""

_PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
:root{--ink:#26323f;--soft:#5b6b7b;--line:#dde3ea;--accent:#1668a8}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);max-width:46rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2rem;border-bottom:1px solid var(--line)}
.lead{font-size:1.1rem}.big{display:flex;gap:2rem;flex-wrap:wrap;margin:1rem 0}
.big div{border-left:3px solid var(--accent);padding-left:.8rem}
.big b{font-size:1.6rem;display:block;line-height:1.2}.big span{color:var(--soft);font-size:.85rem}
table{border-collapse:collapse;width:100%;font-size:.92rem}
td,th{text-align:left;padding:.3rem .6rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600}td:not(:first-child){font-variant-numeric:tabular-nums}
.warn{background:#fff0ee;border:1px solid #d9534f;padding:.8rem;font-weight:600}
svg,img{max-width:100%;height:auto}footer{color:var(--soft);font-size:.8rem;margin-top:2rem}
</style></head><body>
{{ body | safe }}
</body></html>
"""


def page(title: str, body: str) -> str:
    """A whole page around an HTML body that is escaped already."""
    return rendered(_PAGE, {"title": title, "body": body})


def rendered(template: str, context: Mapping[str, Any]) -> str:
    """A template with its values, escaped in Markdown too: it may hold HTML, and names come from a recipe."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(context)
