"""How pages look, and the one script that they may carry.

Colours are figures_style's (Okabe and Ito), lightened where the ground is dark. Everything is inline: a page asks
nobody for anything, and its content policy forbids it to.
"""

from __future__ import annotations

import base64
import hashlib

CSS = """
:root {
  color-scheme: light dark;
  --ground: #fafaf8; --panel: #ffffff; --ink: #1c2126; --soft: #59636d; --line: #e2e4e6; --fill: #eef0f1;
  --blue: #0072b2; --orange: #b87400; --green: #00795a; --red: #b94700; --purple: #a3517d; --wash: #0072b21f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #15181b; --panel: #1d2125; --ink: #e7eaed; --soft: #a2abb4; --line: #343a41; --fill: #272c31;
    --blue: #56b4e9; --orange: #e69f00; --green: #2cc492; --red: #ff8c4d; --purple: #dc93bb; --wash: #56b4e938;
  }
}
@media print {
  :root {
    color-scheme: light;
    --ground: #ffffff; --panel: #ffffff; --ink: #000000; --soft: #444444; --line: #cccccc; --fill: #f1f1f1;
    --blue: #0072b2; --orange: #b87400; --green: #00795a; --red: #b94700; --purple: #a3517d; --wash: #0072b21f;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums; margin: 0 auto; max-width: 68rem; padding: 2rem 1.25rem 4rem;
  color: var(--ink); background: var(--ground);
}
h1 { font-size: 1.75rem; line-height: 1.2; letter-spacing: -0.01em; margin: 0 0 0.4rem; text-wrap: balance; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 3rem 0 0.75rem; scroll-margin-top: 1rem; }
h3 { font-size: 1rem; margin: 1.75rem 0 0.4rem; }
p { margin: 0.5rem 0; max-width: 46rem; }
h1, h2, h3, p, li, dd, td.text, figcaption { overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; }
.soft { color: var(--soft); }
.note { border-left: 3px solid var(--orange); padding: 0.3rem 0.9rem; background: var(--panel); }
nav { display: flex; flex-wrap: wrap; gap: 0.15rem 1.1rem; margin: 1rem 0 0; font-size: 0.9rem; }
a { color: var(--blue); text-decoration-thickness: 1px; text-underline-offset: 0.18em; }
nav a { text-decoration: none; padding: 0.2rem 0; }
nav a:hover { text-decoration: underline; }
:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; border-radius: 3px; }

.facts { display: grid; grid-template-columns: repeat(6, 1fr); gap: 0.75rem; margin: 1.5rem 0; }
.facts div {
  background: var(--panel); border: 1px solid var(--line); border-radius: 10px; padding: 0.8rem 1rem;
  container-type: inline-size;
}
.facts dt, .facts dd span { font-size: 0.8rem; line-height: 1.4; color: var(--soft); }
.facts dd { margin: 0; }
.facts dd b {
  display: block; font-size: min(1.3rem, 13.5cqi); line-height: 1.4; font-weight: 600; letter-spacing: -0.01em;
}
.facts dd span { display: block; }

.wide { overflow-x: auto; margin: 0.75rem 0; }
.panel .wide, .panel figure { margin: 0; }
.panel {
  background: var(--panel); border: 1px solid var(--line); border-radius: 10px; padding: 0.9rem 1rem; margin: 0.75rem 0;
}
table { border-collapse: collapse; font-size: 0.92rem; }
.panel table { width: 100%; }
th, td { padding: 0.34rem 0.75rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
tbody tr:last-child td { border-bottom: 0; }
th { vertical-align: bottom; white-space: normal; font-weight: 600; color: var(--soft); font-size: 0.82rem;
  border-bottom-color: var(--soft); }
th:first-child, td:first-child { text-align: left; padding-left: 0.25rem; }
td.text { text-align: left; white-space: normal; }
tr.chosen td { font-weight: 650; }
tbody tr:hover td { background-color: var(--fill); }
td.bar { min-width: 6.5rem; background: linear-gradient(var(--wash), var(--wash)) no-repeat 0.6rem 50% /
  calc(var(--share) * (100% - 0.9rem)) 72%; }
th.text { text-align: left; }
th button {
  all: unset; cursor: pointer; padding: 0.15rem 0; border-bottom: 1px dotted var(--soft);
}
th button:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
th[aria-sort] button { color: var(--ink); border-bottom-style: solid; }
th[aria-sort=descending] button::after { content: " \\2193"; }
th[aria-sort=ascending] button::after { content: " \\2191"; }

figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; border-radius: 6px; background: #ffffff; }
figcaption { font-size: 0.88rem; color: var(--soft); margin-top: 0.35rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(25rem, 100%), 1fr)); gap: 0.75rem; }
.pictures { columns: 2 26rem; column-gap: 0.75rem; }
.charts figure, .pictures figure {
  margin: 0 0 0.75rem; break-inside: avoid; background: var(--panel); border: 1px solid var(--line);
  border-radius: 10px; padding: 0.9rem 1rem;
}
.charts.three { margin-top: 0.75rem; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); }
.charts.one { grid-template-columns: minmax(0, 36rem); }
.charts h3, .panel h3 { margin: 0 0 0.35rem; font-size: 0.95rem; }
.charts figure { margin: 0; }
.pictures img { display: block; margin: 0 auto; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; fill: var(--soft);
  font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .mark { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 4; }
svg .line { fill: none; stroke: var(--of); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .dot { fill: var(--of); stroke: var(--panel); stroke-width: 1; }
svg .named { fill: var(--ink); }
svg .named.chosen { font-weight: 650; }
.s0 { --of: var(--blue); } .s1 { --of: var(--orange); } .s2 { --of: var(--green); } .s3 { --of: var(--red); }
.s4 { --of: var(--purple); } .s5 { --of: var(--soft); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 0.1rem 1rem; padding: 0; margin: 0.35rem 0 0;
  font-size: 0.84rem; color: var(--soft); }
.legend li::before {
  content: ""; display: inline-block; width: 0.8em; height: 0.8em; border-radius: 3px; background: var(--of);
  margin-right: 0.45em; vertical-align: -0.06em;
}
.shares { display: flex; height: 1.6rem; border-radius: 6px; overflow: hidden; background: var(--fill); }
.shares i { display: block; background: var(--of); flex: var(--share) 0 0; min-width: 1px; }

.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: 1rem 0.75rem; padding: 0;
  margin: 1rem 0; list-style: none; }
.gallery li { background: var(--panel); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.gallery img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; }
.gallery div { padding: 0.55rem 0.75rem 0.75rem; font-size: 0.82rem; line-height: 1.4; }
.gallery p { margin: 0.15rem 0; }
.gallery .name { font-weight: 600; }
.missed { color: var(--red); } .added { color: var(--blue); }
.keys { columns: 3 17rem; column-gap: 2rem; font-size: 0.84rem; line-height: 1.5; }
.keys div { display: flex; justify-content: space-between; gap: 1rem; padding: 0.18rem 0; break-inside: avoid;
  border-bottom: 1px solid var(--line); }
.keys h3 { break-after: avoid; margin: 0 0 0.2rem; padding-top: 0.7rem; font-size: 0.84rem; }
.keys dt { color: var(--soft); } .keys dd { margin: 0; text-align: right; }
details { margin: 0.75rem 0; }
summary { cursor: pointer; color: var(--blue); padding: 0.25rem 0; }
@media (max-width: 62rem) { .facts { grid-template-columns: repeat(3, 1fr); } }
@media (max-width: 36rem) {
  body { padding: 1.25rem 0.9rem 3rem; }
  h1 { font-size: 1.4rem; }
  h2 { margin-top: 2.25rem; }
  .facts { grid-template-columns: 1fr 1fr; gap: 0.5rem; }
  .facts div { padding: 0.6rem 0.75rem; }
  .facts dd b { font-size: 1.2rem; }
  .gallery { grid-template-columns: 1fr 1fr; gap: 0.5rem; }
  .panel, .charts figure, .pictures figure { padding: 0.7rem; }
  th, td { padding: 0.34rem 0.5rem; }
  td.text { min-width: 11rem; }
  td.bar { min-width: 4.8rem; }
  svg text { font-size: 14.5px; }
  .three svg text { font-size: 12px; }
}
@media print {
  @page { margin: 14mm; }
  body { font-size: 10pt; padding: 0; max-width: none; }
  nav { display: none; }
  h2, h3 { break-after: avoid; }
  h2 { margin-top: 1.6rem; }
  figure, tr, .facts div, .gallery li { break-inside: avoid; }
  .wide { overflow: visible; }
  .charts { grid-template-columns: 1fr 1fr; }
  .charts.three { grid-template-columns: repeat(3, 1fr); }
  .facts { grid-template-columns: repeat(6, 1fr); gap: 2mm; }
  .facts div { padding: 2mm; }
  .facts dd b { font-size: 1.1rem; }
  .gallery { grid-template-columns: repeat(4, 1fr); }
  .pictures { columns: 2; }
  .pictures img { max-height: 225mm; }
  th button { border-bottom: 0; }
  td.bar, .shares i, .legend li::before { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

# Headings become buttons here, so that without scripts nothing looks as if it could be pressed.
SCRIPT = """
for (const heading of document.querySelectorAll("table.sortable th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...heading.childNodes);
  heading.append(button);
  button.addEventListener("click", () => {
    const table = heading.closest("table"), body = table.tBodies[0], place = heading.cellIndex;
    const value = (row) => {
      const text = row.cells[place].textContent.trim(), number = Number(text.replaceAll(",", ""));
      return text === "" || Number.isNaN(number) ? text : number;
    };
    const first = value(body.rows[0]);
    const was = heading.getAttribute("aria-sort");
    const up = was ? was === "descending" : typeof first === "string";
    const compare = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "string" ? -1 : 1);
    const rows = [...body.rows].sort((a, b) => (up ? 1 : -1) * compare(value(a), value(b)));
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows);
  });
}
"""

_SCRIPT_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
# No address, form or frame; no script but the one above, not even one that slipped through the escaping.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    f"script-src 'sha256-{_SCRIPT_DIGEST}'"
)
