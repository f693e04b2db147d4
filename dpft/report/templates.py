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
{% if samples %}
## What the trained model writes
{% for prompt, texts in samples %}

After *{{ prompt }}*:
{% for text in texts %}
- {{ text }}
{% endfor %}
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
{% if samples %}<h2>What the trained model writes</h2>
{% for prompt, texts in samples %}<p>After <i>{{ prompt }}</i>:</p>
<ul>{% for text in texts %}<li>{{ text }}</li>{% endfor %}</ul>{% endfor %}{% endif %}
{% if activations %}<h2>Learnt activation functions</h2>
<img src="{{ activations }}" alt="Each layer's activation function, before and after training">{% endif %}
<h2>What is covered</h2><p>{{ s.released | capitalize }}.</p>
<h2>What is not covered</h2><ul>{% for item in s.not_covered %}<li>{{ item }}</li>{% endfor %}</ul>
<footer>dpft {{ s.dpft_version }}. Every figure can be recomputed from plan.json and ledger.jsonl:
<code>dpft report</code>.</footer>
"""
