"""How the page looks: dark on light, readable on a phone, charts and pictures side by side where they fit."""

COLOURS = ("#0b5cad", "#b3400e", "#00705c", "#8a3a86", "#7a5c00", "#3d4451", "#b0125b", "#2f6b12")
"""Of runs, in order: each has a contrast of at least 4.5 to 1 with white."""
DASHES = ("", "6 3", "2 2", "8 2 2 2")
"""Of lines, so that runs can be told apart without colours: the next one begins where colours begin again."""

STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --soft: #505864; --line: #d5d9df; --card: #f6f7f9 }
* { box-sizing: border-box }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto, sans-serif }
main { max-width: 1180px; margin: 0 auto; padding: 20px 16px 60px }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .2em 0 }
h2 { font-size: 1.25rem; margin: 2.2em 0 .2em; padding-top: .5em; border-top: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.2em 0 .4em }
p { max-width: 75ch; margin: .4em 0 } .about { color: var(--soft) }
.warning { border-left: 4px solid #b3400e; background: #fff4ee; padding: 8px 12px }
.runs { list-style: none; padding: 0; margin: 12px 0; display: flex; flex-wrap: wrap; gap: 6px 20px }
.runs svg { vertical-align: middle; margin-right: 6px }
.grid { display: grid; gap: 16px; align-items: start; margin: 12px 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)) }
.cases { grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)) }
.pair { display: grid; gap: 10px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 215px), 1fr)) }
figure { margin: 0; padding: 10px; background: var(--card); border-radius: 8px; min-width: 0 }
figcaption { font-weight: 600; font-size: .95rem; margin-bottom: 4px; overflow-wrap: anywhere }
figure svg, figure img { display: block; width: 100%; height: auto }
figure svg { max-width: 460px }
figure svg text { font-size: 12px; fill: var(--ink); font-family: inherit }
.scroll { overflow-x: auto; margin: 12px 0 } .scroll:focus-visible { outline: 2px solid #0b5cad }
table { border-collapse: collapse; font-size: .95rem; font-variant-numeric: tabular-nums }
caption { text-align: left; font-weight: 600; padding: 4px 0; position: sticky; left: 0;
  width: min(100%, calc(100vw - 32px)) }
th, td { padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
thead th { vertical-align: bottom; white-space: normal; overflow-wrap: break-word; min-width: 4.5em; max-width: 14em }
th[scope=row], thead th:first-child { text-align: left; font-weight: 400; position: sticky; left: 0; background: #fff }
tbody th[scope=row] { white-space: normal; min-width: 7em }
.bars td { width: 45%; min-width: 150px; text-align: left } .bars table { width: 100% }
.left { text-align: left !important }
.bar { display: inline-block; height: .8em; border-radius: 2px; margin-right: 6px; vertical-align: -.05em }
summary { cursor: pointer; font-weight: 600; margin: .6em 0 }
pre { overflow-x: auto; background: var(--card); padding: 10px; border-radius: 8px; font-size: .85rem }
.good > figcaption { color: #00604f } .bad > figcaption { color: #9a340a }
"""
