"""The frame of a page that nothing but this process can change: no script, no other address."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from html import escape

STYLE = """
:root{color-scheme:light dark;--line:#2563a8;--faint:#8884;--bad:#b3261e}
@media (prefers-color-scheme:dark){:root{--line:#7db4ea;--bad:#f2938c}}
body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:1.5rem auto;padding:0 1rem}
h1{font-size:1.4rem;margin:0}h2{font-size:1.15rem;margin:1.6rem 0 .4rem}
h3{font-size:1rem;margin:1.2rem 0 .3rem}
p{margin:.3rem 0}.faint{opacity:.7}.bad{color:var(--bad)}
progress{width:100%;height:.7rem;accent-color:var(--line)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;margin:.6rem 0}
dt{opacity:.7}dd{margin:0}
.curves{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(20rem,100%),1fr));gap:1rem}
figure{margin:0}figcaption{font-size:.9rem}svg{width:100%;height:auto}
svg path{stroke:var(--faint)}svg polyline{fill:none;stroke:var(--line);stroke-width:2}
svg circle{fill:var(--line)}svg text{font-size:11px;fill:currentColor;opacity:.7}
svg .end{text-anchor:end}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.2rem .8rem .2rem 0;border-bottom:1px solid var(--faint);
vertical-align:top;overflow-wrap:break-word}
td:last-child:not(.n){min-width:10rem}
th{font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
"""
POLICY = "; ".join(
    (
        "default-src 'none'",
        f"style-src 'sha256-{b64encode(sha256(STYLE.encode()).digest()).decode()}'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""The Content-Security-Policy: of all that a page can do, only this style sheet is allowed."""
EVERY = 2
"""Seconds until a page that may change is asked for again."""


def document(title: str, body: Iterable[str], again: bool) -> str:
    """A whole page.

    Args:
      body: HTML, in which all that came from elsewhere is escaped.
      again: whether the browser is to ask for it again.
    """
    refresh = f'<meta http-equiv="refresh" content="{EVERY}">' if again else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"{refresh}<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def paragraph(text: str, look: str = "") -> str:
    return f'<p class="{look}">{escape(text)}</p>' if look else f"<p>{escape(text)}</p>"


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{escape(text)}</h{level}>"


def term_list(rows: Iterable[tuple[str, str]]) -> str:
    """Words with what is said of each."""
    inside = "".join(f"<dt>{escape(word)}</dt><dd>{escape(said)}</dd>" for word, said in rows)
    return f"<dl>{inside}</dl>"


def draw_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int]
) -> str:
    """A table of texts; the columns of these numbers, from 0, are aligned as numbers are."""

    def line(cells: Sequence[str], tag: str) -> str:
        looks = [' class="n"' if k in numbers else "" for k in range(len(cells))]
        made = (f"<{tag}{look}>{text}</{tag}>" for look, text in zip(looks, cells, strict=True))
        return f"<tr>{''.join(made)}</tr>"

    head = line([escape(text) for text in headings], "th")
    body = "".join(line([escape(text) for text in row], "td") for row in rows)
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'
