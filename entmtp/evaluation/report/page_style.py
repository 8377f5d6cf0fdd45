"""The style sheet of the report's page: light and dark, wide and narrow."""

STYLE = """\
:root {
  color-scheme: light dark;
  --paper: #ffffff; --card: #f6f7f8; --ink: #1d2126; --faint: #56606a; --line: #d9dee3;
  --good: #005a41; --good-fill: #d5f2e6; --bad: #8a2f00; --bad-fill: #ffe3d3; --level-fill: #eceff2;
  --warn: #fff4d6; --warn-ink: #5b4300;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1d2226; --ink: #e6e9ec; --faint: #a7b1ba; --line: #343b42;
    --good: #7fe3c0; --good-fill: #0f3a2c; --bad: #ffb68c; --bad-fill: #4a2412; --level-fill: #262c31;
    --warn: #3a3012; --warn-ink: #f3deb0;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.75rem 0 .25rem; }
.lead { font-size: 1.1rem; max-width: 60rem; margin: .5rem 0; }
.note, figcaption { color: var(--faint); font-size: .9rem; margin: .25rem 0 .6rem; max-width: 60rem; }
ul { padding-left: 1.2rem; } li { margin: .2rem 0; }
.caveats { background: var(--warn); color: var(--warn-ink); border-radius: 8px; padding: .6rem 1rem; margin: 1rem 0; }
.caveats ul { margin: 0; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
.scroll:focus-visible, summary:focus-visible { outline: 3px solid #3b82f6; outline-offset: 2px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .88rem;
  font-variant-numeric: tabular-nums; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { padding: .3rem .65rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { background: var(--card); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; text-align: left; background: var(--paper); }
tr > th:first-child { position: sticky; left: 0; text-align: left; }
tr:last-child > * { border-bottom: 0; }
tr.group > * { border-top: 2px solid var(--faint); }
.word { text-align: left; }
.interval { color: var(--faint); font-size: .8rem; margin-left: .35rem; }
td.faster { background: var(--good-fill); color: var(--good); } td.faster .interval { color: inherit; }
td.slower { background: var(--bad-fill); color: var(--bad); } td.slower .interval { color: inherit; }
td.level { background: var(--level-fill); }
.mark { display: inline-block; width: 1.1em; text-align: center; }
.matrix td { text-align: center; border-left: 1px solid var(--line); } .matrix thead th { text-align: center; }
.matrix .interval { display: block; margin: 0; line-height: 1.2; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
figure { margin: 1rem 0 2rem; }
figure .scroll { background: #fff; }
figure img { display: block; width: 100%; min-width: 56rem; padding: .5rem; }
details { border: 1px solid var(--line); border-radius: 8px; margin: .6rem 0; padding: 0 1rem; }
details[open] { padding-bottom: 1rem; }
summary { cursor: pointer; font-weight: 600; margin: 0 -1rem; padding: .6rem 1rem; }
.facts td { white-space: normal; overflow-wrap: anywhere; text-align: left; }
.facts th { white-space: nowrap; color: var(--faint); width: 16rem; }
@media (max-width: 40rem) {
  body { padding: 1rem .75rem 3rem; }
  .facts th { white-space: normal; overflow-wrap: anywhere; width: 35%; }
  .interval { display: block; margin: 0; line-height: 1.2; }
}
"""
