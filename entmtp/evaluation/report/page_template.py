"""The Jinja template of the report's page: verdicts, figures and a table per suite are open, all else is folded."""

TEMPLATE = """\
{% macro body(cell) %}
{% if cell is string %}
{{ cell }}
{%- else %}
{% if cell.mark %}<span class="mark" aria-hidden="true">{{ cell.mark }}</span>{% endif %}
{% if cell.verdict %}<span class="hidden">{{ cell.verdict }}</span> {% endif %}
{{ cell.text }}
{%- if cell.interval %} <span class="interval">{{ cell.interval }}</span>{% endif %}
{% endif %}
{% endmacro %}
{% macro show(table, kind="") %}
<div class="scroll" tabindex="0"><table class="{{ kind }}">
<caption>{{ table.title }}</caption>
<thead><tr>
{% for heading in table.headings %}
<th scope="col"{% if loop.index <= table.names %} class="word"{% endif %}>{{ heading }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in table.rows %}
{% set group = table.names > 1 and not loop.first and row[0] != table.rows[loop.index0 - 1][0] %}
<tr{% if group %} class="group"{% endif %}>
{% for cell in row %}
{% if loop.index <= table.names %}
<th scope="row">{{ cell }}</th>
{% else %}
<td{% if cell is not string and cell.verdict %} class="{{ cell.verdict }}"{% endif %}>{{ body(cell) | trim }}</td>
{% endif %}
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
{% macro draw(plot) %}
<figure>
<div class="scroll" tabindex="0"><img src="data:image/png;base64,{{ plot | image }}" alt="{{ plot.title }}"></div>
<figcaption><strong>{{ plot.title }}.</strong> {{ plot.caption }}</figcaption>
</figure>
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
{{ style | safe }}
</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
<p class="note">{{ run }}</p>
<p class="lead">{{ headline | join("; ") }}.</p>
{% for sentence in method %}
<p class="note">{{ sentence }}.</p>
{% endfor %}
{% if caveats %}
<div class="caveats"><ul>
{% for sentence in caveats %}
<li>{{ sentence }}</li>
{% endfor %}
</ul></div>
{% endif %}
<h2>Figures</h2>
{% for plot in plots %}
{{ draw(plot) }}
{% endfor %}
<h2>Suites</h2>
<p class="note">tau: tokens per step, the model's own included. ×: how many times as fast as that arm, on the same
prompts; ▲ faster, ▼ slower, = level (the interval holds 1), – no claim (too few prompts). Brackets are {{ confidence }}
intervals over prompts. identical: requests with exactly the tokens of the model's own generate; a tie: the first
different token was as good as the other to the model. Scores have their number of prompts in brackets.</p>
{% for table in suites %}
<h3>{{ table.title }}</h3>
<p class="note">{{ table.note }}</p>
{{ show(table) }}
{% endfor %}
<h2>Details</h2>
<details><summary>Every verdict, with its method</summary>
<ul>
{% for sentence in verdicts %}
<li>{{ sentence }}</li>
{% endfor %}
</ul>
</details>
<details><summary>How to read it: arms, speedups, intervals</summary>
<ul>
<li>Every arm wrote the same prompts in the same run, one after another in rotating order. The speedup of
an arm against another is the other's time over its own for the same tokens, after the median over repetitions of each
prompt.</li>
<li>Intervals are {{ confidence }}: {{ how }}. With fewer than {{ fewest }} prompts there is no interval, and a
speedup without one is not shown. Those of tables and figures each hold for their own comparison: of twenty, one may
miss. Those of the verdicts hold all together.</li>
<li>tau counts the root, so autoregressive decoding is 1. Tokens per second count the whole request, prefill
included.</li>
<li>medusa and hydra use the published tree of 63 nodes; medusa-best and hydra-best the best constant tree for the
suite on this hardware; entmtp chooses a tree at each step by its entropy's moving average, entmtp-goodput the tree
whose predicted tokens, less what its time is worth elsewhere, are most; entmtp-dynamic builds its tree while the heads
guess, from their own probabilities. always-big takes the bank's largest tree.
entmtp-transfer has another suite's bank, entmtp-mixed one bank for all suites. random uses entmtp-dynamic's trees in
shuffled order: what entmtp-dynamic gains over it comes from choosing at the right time. bank-oracle and hindsight
know the text: bank-oracle takes the best of the bank's trees at each step, hindsight verifies the right path alone,
which is the most that these heads' guesses can gain. A share of either is the arm's speed over theirs.</li>
<li>The best adaptive arm is the one of entmtp, entmtp-goodput and entmtp-dynamic that was fastest on these same
prompts; the verdicts' intervals allow for that choice.</li>
</ul>
</details>
{% for section in sections %}
<details><summary>{{ section.title }}</summary>
{% if section.note %}
<p class="note">{{ section.note }}</p>
{% endif %}
{% for plot in section.plots %}
{{ draw(plot) }}
{% endfor %}
{% for table in section.tables %}
{% if table.title != section.title %}
<h3>{{ table.title }}</h3>
{% endif %}
{{ show(table, section.kind) }}
{% endfor %}
</details>
{% endfor %}
<details><summary>Where the numbers come from: model, settings, hardware, versions</summary>
<div class="scroll" tabindex="0"><table class="facts">
<caption>Where the numbers come from</caption>
{% for name, value in facts %}
<tr><th scope="row">{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}
</table></div>
</details>
</main>
</body>
</html>
"""
