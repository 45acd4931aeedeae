"""How the page of a comparison looks, light and dark, and what makes its tables sort."""

from __future__ import annotations

from collections.abc import Mapping

LIGHT = {
    "text": "#1b1f24",
    "muted": "#57606a",
    "ground": "#ffffff",
    "raised": "#f3f5f7",
    "line": "#7d8590",
    "grid": "#d8dee4",
    "good": "#1a6b32",
    "bad": "#b3261e",
    "unsure": "#855000",
    "c0": "#0b5cad",
    "c1": "#b04a00",
    "c2": "#1a7a45",
    "c3": "#8338a8",
    "c4": "#b0124b",
    "c5": "#6b6200",
}
DARK = {
    "text": "#e6edf3",
    "muted": "#a3adb8",
    "ground": "#0f141a",
    "raised": "#1a212a",
    "line": "#7d8590",
    "grid": "#2d353f",
    "good": "#5fd07d",
    "bad": "#ff8a80",
    "unsure": "#f0b35a",
    "c0": "#6cb4ff",
    "c1": "#ffa25e",
    "c2": "#6fd18b",
    "c3": "#d6a3ff",
    "c4": "#ff8fb0",
    "c5": "#d6d060",
}
STRONGEST_HEAT = 0.45
"""Share of colour `c0` behind the numbers of a confusion matrix at a share of 1."""


def _variables(palette: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in palette.items())


STYLE = (
    f":root{{color-scheme:light dark;{_variables(LIGHT)}}}\n"
    f"@media(prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}\n"
    + "".join(f".c{index}{{--own:var(--c{index})}}\n" for index in range(6))
    + f".share{{background:color-mix(in srgb,var(--c0) calc(var(--share)*{100 * STRONGEST_HEAT:g}%),var(--ground))}}"
    + """
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:90rem;background:var(--ground);color:var(--text);
 font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;margin:.5rem 0}
h2{font-size:1.2rem;margin:2.2rem 0 .5rem;border-bottom:1px solid var(--grid)}
h3{font-size:1rem;margin:1.2rem 0 .3rem}
p,ul{margin:.4rem 0;max-width:48rem}
a,summary{color:var(--c0)}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1rem;padding:0;list-style:none;max-width:none}
.banner{border:1px solid var(--own);border-left-width:.5rem;padding:.6rem 1rem;background:var(--raised)}
.banner ul{max-width:none}
.banner strong{color:var(--own);font-size:1.2rem}
.good{--own:var(--good)}.bad{--own:var(--bad)}.unsure{--own:var(--unsure)}
.note{color:var(--muted)}
.scroll{overflow-x:auto;max-width:100%}
:focus-visible{outline:3px solid var(--c0);outline-offset:2px}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;overflow-wrap:normal}
caption{text-align:left;color:var(--muted)}
th,td{padding:.3rem .45rem;border-bottom:1px solid var(--grid);text-align:left;vertical-align:top;unicode-bidi:isolate}
table{width:max-content}
td:not(.number){max-width:12rem;overflow-wrap:break-word}
th.number{max-width:8rem}
.facts{width:auto}.facts td:not(.number){max-width:none}
thead th{background:var(--raised);vertical-align:bottom}
th button{all:unset;cursor:pointer;text-decoration:underline dotted}
th button:focus-visible{outline:3px solid var(--c0)}
th[aria-sort=ascending] button::after{content:" ▲"}
th[aria-sort=descending] button::after{content:" ▼"}
.number{text-align:right}
td.number{white-space:nowrap}
.matrix th,.matrix td{padding:.15rem .35rem;text-align:right}
figure{margin:.5rem 0 1rem}
figcaption{color:var(--muted);max-width:48rem}
svg{display:block;width:100%;min-width:26rem;max-width:38rem;height:auto}
svg text{font:13px system-ui,sans-serif;fill:var(--text)}
svg .axis{fill:var(--muted);font-size:12px}
svg .number,svg .value{font-variant-numeric:tabular-nums}
.grid,.zero,.frame{stroke:var(--grid);fill:none;vector-effect:non-scaling-stroke}
.zero,.frame{stroke:var(--line)}
.mark,.part{fill:var(--own)}
.part{stroke:var(--ground)}
.bar{stroke:var(--own);stroke-width:2}
.box{fill:var(--ground);stroke:var(--own);stroke-width:2}
.median{stroke:var(--own);stroke-width:4}
.band{fill:var(--own);fill-opacity:.3;stroke:var(--own);stroke-width:2;stroke-linejoin:round}
.front{fill:none;stroke:var(--own);stroke-dasharray:5 4}
.heat{fill:var(--c0)}
.key{display:inline-block;width:.8em;height:.8em;margin-right:.3em;background:var(--own)}
ol.legend,ul.legend{padding-left:2rem}
pre{white-space:pre-wrap;background:var(--raised);padding:.6rem;font-size:.8rem;max-height:40rem;overflow:auto}
"""
)

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const numeric = head.classList.contains("number");
      const key = row => {
        const cell = row.cells[column];
        return numeric ? parseFloat(cell.dataset.value) : cell.textContent;
      };
      const order = (one, other) => numeric
        ? isNaN(one) - isNaN(other) || sign * (one - other) || 0
        : sign * one.localeCompare(other, undefined, {numeric: true});
      body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
    });
  });
}
"""
"""Makes the heads of tables into buttons. What was not measured stays below."""
