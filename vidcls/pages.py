"""HTML pages in one file that need no network; all extend page.html.j2 and use page.css.

File names are untrusted: pages show them as escaped text, through `visible`, and a Content-Security-Policy allows only
the page's own scripts, styles and pictures.
"""

import base64
import hashlib
import math
import unicodedata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

HERE = Path(__file__).parent


def render_page(folder: Path, name: str, **values: Any) -> bytes:
    """Renders ``name``.html.j2 of a folder with ``values``, and with each .css and .js whose name begins so."""
    environment = Environment(
        loader=FileSystemLoader([folder, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: "" if value is None else value,
    )
    environment.filters |= {
        "clock": clock,
        "visible": visible,
        "number": number,
        "probability": lambda value: "–" if value is None else f"{value:.3f}",  # noqa: RUF001
        # The source expression by which a Content-Security-Policy allows this script or style.
        "source": lambda text: f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'",
    }
    style, script = (
        Markup("".join(file.read_text() for file in files))
        for files in ([HERE / "page.css", *sorted(folder.glob(f"{name}*.css"))], sorted(folder.glob(f"{name}*.js")))
    )
    page = environment.get_template(f"{name}.html.j2").render(style=style, script=script, **values)
    return page.encode()


def clock(seconds: float | None) -> str:
    """m:ss, or h:mm:ss from an hour on; what would round to 0:00 is in seconds.

    >>> clock(59.7), clock(3725.0), clock(0.4)
    ('1:00', '1:02:05', '0.4 s')
    """
    if seconds is None:
        return "–"  # noqa: RUF001
    if 0 < seconds < 0.5:
        return f"{seconds:.1g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def visible(text: str) -> str:
    r"""The text with escaped control and format characters, line ends and lone surrogates.

    The two joiners are kept, since emojis and some scripts need them.

    >>> visible("a\nb \u202egpj.exe")
    'a\\nb \\u202egpj.exe'
    """
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in hidden and letter not in "\u200c\u200d"
        else letter
        for letter in text
    )


def number(text: str) -> float | None:
    """A table's cell as a number; None where it is empty, NaN or infinite."""
    value = float(text or "nan")
    return value if math.isfinite(value) else None
