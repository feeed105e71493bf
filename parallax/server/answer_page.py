"""The page behind an answer link: a question, its answers as buttons, nothing else. Shown by `routes.questions`.

Everything on it that comes from agents is text, and the policy lets no script run and nothing be fetched, so that a
question can do nothing but be read. Opening it changes nothing: mail programs open links by themselves.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from html import escape
from typing import Final

from starlette.responses import Response

from parallax.models import Question

_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 1.0625rem/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 40rem; padding: 1.25rem; }
h1 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 .25rem; }
.who { opacity: .75; margin: 0 0 1rem; overflow-wrap: anywhere; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; border-left: .25rem solid; padding: .25rem 0 .25rem .75rem; }
form { display: grid; gap: .75rem; margin: 1.25rem 0; }
button, textarea { font: inherit; border-radius: .5rem; padding: .75rem; min-height: 3rem; box-sizing: border-box;
  width: 100%; overflow-wrap: anywhere; }
button { border: 1px solid; background: transparent; color: inherit; cursor: pointer; font-weight: 600; }
button:hover, button:focus-visible { outline: .2rem solid; outline-offset: .1rem; }
textarea { border: 1px solid; min-height: 7rem; background: transparent; color: inherit; }
"""
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: a browser would then send its answer with `Origin: null`, which the gate refuses.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def question_page(question: Question) -> Response:
    """The question with its answers, or how it was answered."""
    if question.state != "with_person":
        return notice_page(*_over(question))
    deadline = datetime.fromtimestamp(question.deadline_at or 0, UTC).strftime("%d %B %Y, %H:%M UTC")
    what = {"permission": "asks for permission", "approval": "asks for your approval"}.get(question.kind, "asks")
    default = next((_label(o) for o in question.options if o["id"] == question.default), question.default)
    otherwise = f"“{escape(default)}” is taken." if default else "the step fails."
    return _page(
        f"{_name(question.asker)} {what}",
        f'<p class="who">step {escape(question.step_key)} of {escape(question.execution)}</p>'
        f'<div class="text">{escape(question.text)}</div>'
        f'<form method="post">{_answers(question)}</form>'
        f'<p class="who">Without an answer until {deadline}, {otherwise}</p>',
    )


def notice_page(title: str, text: str, status: int = 200) -> Response:
    """A page that says one thing."""
    return _page(title, f"<p>{escape(text)}</p>", status)


def answered_page(question: Question) -> Response:
    """What follows an answer."""
    return notice_page("Thank you", f"Your answer is “{_answer(question)}”. Whoever asked goes on with it.")


def _answers(question: Question) -> str:
    if question.options:
        return "".join(
            f'<button name="answer" value="{escape(option["id"])}">{escape(_label(option))}</button>'
            for option in question.options
        )
    return (
        '<textarea name="answer" aria-label="Your answer" required maxlength="20000"></textarea>'
        "<button>Send the answer</button>"
    )


def _over(question: Question) -> tuple[str, str]:
    match question.state:
        case "answered" | "defaulted":
            return "It is answered", f"The answer is “{_answer(question)}”, by {question.answered_by}."
        case "failed":
            return "Too late", "Nobody answered before the deadline."
        case "withdrawn":
            return "No longer asked", "Whoever asked has ended, or does not need the answer any more."
        case _:
            return "Not yet for you", "A colleague in the team is asked first."


def _answer(question: Question) -> str:
    chosen = next((option for option in question.options if option["id"] == question.answer), None)
    return _label(chosen) if chosen else question.answer or ""


def _label(option: object) -> str:
    assert isinstance(option, dict)
    return str(option.get("label") or option["id"])


def _name(asker: str) -> str:
    return "The program" if asker == "program" else ".".join(asker.split(".")[-2:])


def _page(title: str, body: str, status: int = 200) -> Response:
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{escape(title)}</h1>{body}</main></body></html>"
    )
    return Response(html, status_code=status, media_type="text/html", headers=_HEADERS)
