"""What is written of a run without privacy, so that nobody takes what it trained for a private result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpft import __version__
from dpft.engine.plan import Plan
from dpft.files import write_atomic, write_json
from dpft.report.page import Samples, page, rendered

MARK = "NOT PRIVATE"

_MARKDOWN = """\
# NOT PRIVATE: {{ name }}

**Trained without privacy (privacy.enabled = false). Nothing is promised to anybody whose records are in
*{{ s.dataset }}*: whoever has the weights may learn what single records hold.**

| | |
|---|---|
{% for row in facts %}
| {{ row[0] }} | {{ row[1] }} |
{% endfor %}
{% for prompt, texts in samples %}

Written after *{{ prompt }}*:
{% for text in texts %}
- {{ text }}
{% endfor %}
{% endfor %}
"""

_HTML = """\
<h1>NOT PRIVATE: {{ name }}</h1>
<p class="warn">Trained without privacy (privacy.enabled = false). Nothing is promised to anybody whose records are in
<i>{{ s.dataset }}</i>: whoever has the weights may learn what single records hold.</p>
<table>{% for row in facts %}<tr><td>{{ row[0] }}</td><td>{{ row[1] }}</td></tr>{% endfor %}</table>
{% for prompt, texts in samples %}<p>Written after <i>{{ prompt }}</i>:</p>
<ul>{% for text in texts %}<li>{{ text }}</li>{% endfor %}</ul>{% endfor %}
<footer>dpft {{ s.dpft_version }}</footer>
"""


def write_unprotected(
    folder: Path, plan: Plan, facts: Mapping[str, Any], metrics: Sequence[tuple[str, str]], samples: Samples
) -> dict[str, Any]:
    """Write privacy.json, report.md and report.html of a run without privacy; returns the statement."""
    made = _statement(plan, facts)
    context = {"name": facts["name"], "s": made, "facts": [*_facts(plan, made), *metrics], "samples": samples}
    write_json(folder / "privacy.json", made)
    write_atomic(folder / "report.md", rendered(_MARKDOWN, context).encode())
    write_atomic(folder / "report.html", page(f"{MARK}: {facts['name']}", rendered(_HTML, context)).encode())
    return made


def _statement(plan: Plan, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that a reader of privacy.json relies on; every bound is infinite."""
    return {
        "private": False,
        "unit": plan.unit.name,
        "adjacency": plan.unit.adjacency,
        "adjacency_in_words": "no relation between data sets is protected",
        "epsilon": {"lower": "inf", "upper": "inf"},
        "delta": plan.delta,
        "noise_multiplier": 0.0,
        "clip": "inf",
        "sampler": plan.sampler,
        "sample_rate": plan.sample_rate,
        "expected_batch_size": plan.expected_batch_size,
        "steps_planned": plan.steps,
        "steps_charged": 0,
        "trained_parameters": facts["trained_parameters"],
        "noise_source": facts["noise_source"],
        "dataset": facts["dataset"],
        "model": facts["model"],
        "released": "nothing that is private",
        "not_covered": ["everything: training had neither clipping nor noise"],
        "dpft_version": __version__,
    }


def _facts(plan: Plan, made: Mapping[str, Any]) -> list[tuple[str, str]]:
    epsilon = f"{math.ceil(plan.epsilon.upper * 1e4) / 1e4:.4f}"
    return [
        ("epsilon", "infinite"),
        ("steps", str(plan.steps)),
        ("expected batch size", f"{plan.expected_batch_size:g}"),
        ("trained parameters", f"{made['trained_parameters']['count']:,}"),
        ("model", made["model"]),
        ("plan of the private twin", f"epsilon {epsilon} at delta {plan.delta:g}"),
    ]
