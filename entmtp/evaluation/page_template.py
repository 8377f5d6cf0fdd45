"""The Jinja template of the report's page."""

TEMPLATE = """\
{% macro show(table) %}
<h2>{{ table.title }}</h2>
<p class="note">{{ table.note }}</p>
<div class="scroll"><table>
<thead><tr>
{% for heading in table.headings %}
<th{% if loop.index <= table.names %} class="word"{% endif %}>{{ heading }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in table.rows %}
{% set group = "group" if not loop.first and row[0] != table.rows[loop.index0 - 1][0] %}
<tr class="{{ table.marks[loop.index0] }} {{ group }}">
{% for cell in row %}
{% set claim = "claim" if loop.index0 in table.claims %}
<td class="{{ 'word' if loop.index <= table.names }} {{ claim }}">{{ cell }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root {
  color-scheme: light dark;
  --paper: #ffffff; --card: #f6f7f8; --ink: #1d2126; --faint: #5c6670; --line: #d9dee3;
  --good: #00694d; --bad: #a63c00; --warn: #fff4d6; --warn-ink: #5b4300;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1d2226; --ink: #e6e9ec; --faint: #a2acb5; --line: #343b42;
    --good: #4fd1a5; --bad: #ff9d66; --warn: #3a3012; --warn-ink: #f3deb0;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p.note, figcaption { color: var(--faint); font-size: .9rem; margin: .25rem 0 .75rem; max-width: 60rem; }
ul { padding-left: 1.2rem; } li { margin: .2rem 0; }
.caveats { background: var(--warn); color: var(--warn-ink); border-radius: 8px; padding: .6rem 1rem; }
.caveats ul { margin: 0; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { background: var(--card); font-weight: 600; }
tr:last-child td { border-bottom: 0; }
tr.group td { border-top: 2px solid var(--faint); }
.word { text-align: left; }
tr.slower td.claim { color: var(--bad); } tr.faster td.claim { color: var(--good); }
figure { margin: 1rem 0 2rem; } figure img { width: 100%; background: #fff; border: 1px solid var(--line);
  border-radius: 8px; padding: .5rem; }
.facts td { white-space: normal; overflow-wrap: anywhere; text-align: left; }
.facts td:first-child { white-space: nowrap; color: var(--faint); width: 16rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% if caveats %}
<div class="caveats"><ul>
{% for sentence in caveats %}
<li>{{ sentence }}</li>
{% endfor %}
</ul></div>
{% endif %}
<h2>What it says</h2>
<ul>
{% for sentence in verdicts %}
<li>{{ sentence }}</li>
{% endfor %}
</ul>
<h2>How to read it</h2>
<ul>
<li>Every arm wrote the same prompts in the same run, one after another in rotating order. The speedup of
an arm against another is the other's time over its own for the same tokens, after the median over repetitions of each
prompt.</li>
<li>Intervals are {{ confidence }}: {{ method }}. With fewer than {{ fewest }} prompts there is no interval, and a
speedup without one is not shown. Those of tables and figures each hold for their own comparison: of twenty, one may
miss. Those of the sentences above hold all together.</li>
<li>tau counts the root, so autoregressive decoding is 1. Tokens per second count the whole request, prefill
included.</li>
<li>medusa and hydra use the published tree of 63 nodes; medusa-best and hydra-best the best constant tree for the
suite on this hardware; entmtp chooses a tree at each step by its entropy's moving average, entmtp-goodput the tree
whose foretold tokens, less what its time is worth elsewhere, are most; entmtp-dynamic builds its tree while the heads
guess, from their own probabilities. always-big takes the bank's largest tree.
entmtp-transfer has another suite's bank, entmtp-mixed one bank for all suites. random uses entmtp-dynamic's trees in
shuffled order: what entmtp-dynamic gains over it comes from choosing at the right time. oracle chooses with
hindsight.</li>
<li>The best adaptive arm is the one of entmtp, entmtp-goodput and entmtp-dynamic that was fastest on these same
prompts; the sentences' intervals allow for that choice.</li>
</ul>
{% for table in tables[:2] %}
{{ show(table) }}
{% endfor %}
<h2>Figures</h2>
{% for plot, image in plots %}
<figure>
<img src="data:image/png;base64,{{ image }}" alt="{{ plot.title }}">
<figcaption><strong>{{ plot.title }}.</strong> {{ plot.caption }}</figcaption>
</figure>
{% endfor %}
{% for table in tables[2:] %}
{{ show(table) }}
{% endfor %}
<h2>Where the numbers come from</h2>
<div class="scroll"><table class="facts">
{% for name, value in facts %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}
</table></div>
</body>
</html>
"""
