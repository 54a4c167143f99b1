"""Style and script of the page: inside it, so that it opens without a network."""

from __future__ import annotations

STYLE = """
:root { --better: #f5d60b; --not: #2f4b8f; --line: #d5d8de; --soft: #f4f5f8; --ink: #1c2430; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 0; background: #fff; }
main { max-width: 1320px; margin: 0 auto; padding: 0 20px 60px; }
header { background: var(--ink); color: #fff; padding: 22px 20px; }
header div { max-width: 1280px; margin: 0 auto; }
header h1 { margin: 0 0 4px; font-size: 24px; }
header p { margin: 0; opacity: .85; }
nav { position: sticky; top: 0; background: #fff; border-bottom: 1px solid var(--line);
  padding: 8px 20px; z-index: 2; }
nav a { margin-right: 16px; color: var(--not); text-decoration: none; }
h2 { margin: 34px 0 6px; font-size: 20px; }
h3 { margin: 20px 0 4px; font-size: 16px; }
p.about { margin: 4px 0 10px; color: #4d5765; max-width: 980px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: 3px 8px; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
thead th { background: var(--soft); vertical-align: bottom; }
tfoot td { color: #4d5765; font-size: 12px; }
table.sortable thead th { cursor: pointer; user-select: none; }
th[aria-sort] { color: var(--not); text-decoration: underline; }
td small { color: #68717e; }
td.best { font-weight: 700; background: #fdf6c3; }
td.not_worse { background: #fdfae4; }
table.heat th { font-weight: 400; font-size: 11px; padding: 1px 4px; border: 0; background: none; }
table.heat thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; }
table.heat td { width: 15px; height: 15px; padding: 0; border: 1px solid #fff; }
td.win { background: var(--better); } td.lose { background: var(--not); }
td.same { background: #20242b; } td.none { background: var(--line); }
svg { max-width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--ink); }
label { margin-right: 14px; } select { font: inherit; }
ul.caveats { background: #fff8e6; border: 1px solid #ecd9a0; border-radius: 6px;
  padding: 12px 12px 12px 30px; }
ul.caveats li { margin: 3px 0; }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--not); }
figure { margin: 8px 0; } figcaption { color: #4d5765; font-size: 13px; }
[hidden] { display: none; }
"""

SCRIPT = """
"use strict";
const value = (row, column) => {
  const text = row.cells[column].dataset.value;
  return text === undefined ? row.cells[column].textContent.trim() : Number(text);
};
function order(table, column, up) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  rows.sort((a, b) => {
    const x = value(a, column), y = value(b, column);
    if (typeof x === "string") return up ? x.localeCompare(y) : y.localeCompare(x);
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return up ? x - y : y - x;
  });
  rows.forEach(row => body.append(row));
  for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
  table.tHead.rows[0].cells[column].setAttribute("aria-sort", up ? "ascending" : "descending");
}
for (const table of document.querySelectorAll("table.sortable")) {
  Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
    head.tabIndex = 0;
    const act = () => {
      const was = head.getAttribute("aria-sort");
      order(table, column, was ? was === "descending" : head.dataset.first === "up");
    };
    head.addEventListener("click", act);
    head.addEventListener("keydown", event => { if (event.key === "Enter") act(); });
  });
}
for (const chooser of document.querySelectorAll(".chooser")) {
  const picks = Array.from(chooser.querySelectorAll("select"));
  const show = () => {
    for (const item of document.querySelectorAll(`[data-of="${chooser.dataset.shows}"]`))
      item.hidden = picks.some(pick => item.dataset[pick.name] !== pick.value);
  };
  picks.forEach(pick => pick.addEventListener("change", show));
  chooser.hidden = false;
  show();
}
// report.html#sort=board-dsc-own:liver opens with that board sorted by that column.
function follow() {
  const asked = /^#sort=([^:]+):(.+)$/.exec(decodeURIComponent(location.hash));
  const table = asked && document.getElementById(asked[1]);
  if (!table || !table.tHead) return;
  const heads = Array.from(table.tHead.rows[0].cells);
  const column = heads.findIndex(head => head.dataset.key === asked[2]);
  if (column >= 0) order(table, column, heads[column].dataset.first === "up");
}
window.addEventListener("hashchange", follow);
follow();
"""
