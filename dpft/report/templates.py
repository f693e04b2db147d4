"""The report's two faces. jinja2 escapes everything in the page; nothing here comes from a record."""

MARKDOWN = """\
# Privacy report: {{ name }}

{% if not s.private %}
**NOT PRIVATE: {{ s.noise_source }}.**

{% endif %}
Training on *{{ s.dataset }}* satisfies **({{ eps }}, {{ s.delta }})-differential privacy** for each
{{ s.unit }}: {{ s.adjacency_in_words }}.

{% if started_from %}
{{ started_from }}

{% endif %}
## Plan against ledger

| | planned | ledger |
|---|---|---|
| epsilon, upper bound | {{ planned.upper }} | {{ own.upper }} |
| epsilon, lower bound | {{ planned.lower }} | {{ own.lower }} |
| steps | {{ s.steps_planned }} | {{ s.steps_charged }} |

## Attack risk

| covers {{ s.attack_risk.covers }} | at most |
|---|---|
{% for name, value in risk %}
| {{ name }} | {{ value }} |
{% endfor %}

{{ risk_in_words }}

## Mechanism

| | |
|---|---|
{% for name, value in mechanism %}
| {{ name }} | {{ value }} |
{% endfor %}

## Accountants

| | lower | upper | remarks |
|---|---|---|---|
{% for row in accountants %}
| {{ row.method }} | {{ row.lower }} | {{ row.upper }} | {{ row.flags }} |
{% endfor %}

{% if metrics %}
## Utility

| | |
|---|---|
{% for name, value in metrics %}
| {{ name }} | {{ value }} |
{% endfor %}

{% endif %}
## What is covered

{{ s.released | capitalize }}.

## What is not covered

{% for item in s.not_covered %}
- {{ item }}
{% endfor %}
"""

HTML = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Privacy report: {{ name }}</title>
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
<h1>Privacy report: {{ name }}</h1>
{% if not s.private %}<p class="warn">NOT PRIVATE: {{ s.noise_source }}.</p>{% endif %}
<p class="lead">Training on <i>{{ s.dataset }}</i> satisfies ({{ eps }}, {{ s.delta }})-differential privacy for
each {{ s.unit }}: {{ s.adjacency_in_words }}.</p>
{% if started_from %}<p>{{ started_from }}</p>{% endif %}
<div class="big"><div><b>{{ eps }}</b><span>epsilon, upper bound</span></div>
<div><b>{{ s.delta }}</b><span>delta</span></div>
<div><b>{{ s.steps_charged }} / {{ s.steps_planned }}</b><span>steps charged / planned</span></div>
{% for name, value in metrics[:1] %}<div><b>{{ value }}</b><span>{{ name }}</span></div>{% endfor %}</div>
<h2>Plan against ledger</h2>
<table><tr><th></th><th>planned</th><th>ledger</th></tr>
<tr><td>epsilon, upper bound</td><td>{{ planned.upper }}</td><td>{{ own.upper }}</td></tr>
<tr><td>epsilon, lower bound</td><td>{{ planned.lower }}</td><td>{{ own.lower }}</td></tr>
<tr><td>steps</td><td>{{ s.steps_planned }}</td><td>{{ s.steps_charged }}</td></tr></table>
<h2>Privacy spent over the steps</h2>
{{ plot | safe }}
<h2>Attack risk</h2>
<table><tr><th>covers {{ s.attack_risk.covers }}</th><th>at most</th></tr>
{% for name, value in risk %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</table>
<p>{{ risk_in_words }}</p>
{{ attack_plot | safe }}
<h2>Mechanism</h2>
<table>{% for name, value in mechanism %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</table>
<h2>Accountants</h2>
<table><tr><th></th><th>lower</th><th>upper</th><th>remarks</th></tr>
{% for row in accountants %}<tr><td>{{ row.method }}</td><td>{{ row.lower }}</td><td>{{ row.upper }}</td>
<td>{{ row.flags }}</td></tr>{% endfor %}</table>
{% if metrics %}<h2>Utility</h2>
<table>{% for name, value in metrics %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</table>{% endif %}
{% if activations %}<h2>Learnt activation functions</h2>
<img src="{{ activations }}" alt="Each layer's activation function, before and after training">{% endif %}
<h2>What is covered</h2><p>{{ s.released | capitalize }}.</p>
<h2>What is not covered</h2><ul>{% for item in s.not_covered %}<li>{{ item }}</li>{% endfor %}</ul>
<footer>dpft {{ s.dpft_version }}. Every figure can be recomputed from plan.json and ledger.jsonl:
<code>dpft report</code>.</footer>
</body></html>
"""
