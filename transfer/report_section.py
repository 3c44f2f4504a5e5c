"""What the report page tells of one run: facts, what is missing, and the scores or the training of its kind.

What comes in: a `Run` and the files in its folder (`transfer/report_inputs.py`). What goes out: a `Section`, which the
page's template lays out.
"""

from datetime import datetime
from typing import Any

from transfer.fit_report import add_fit, add_score
from transfer.report_curves import add_curves, add_sheets
from transfer.report_inputs import Run
from transfer.report_parts import Section
from transfer.report_scores import add_scores

FILLED_BY = {
    "predictivity": (add_scores,),
    "score": (add_score,),
    "fit": (add_fit,),
    "pretrain": (add_curves, add_sheets),
}


def make_section(run: Run, title: str, anchor: str) -> Section:
    """All that the page says of a run; `anchor` names its place on the page.

    Raises ValueError where a file in the run folder cannot be read.
    """
    section = Section(anchor, title, run, facts=_facts(run))
    state, message = str(run.status.get("state", "unknown")), str(run.status.get("message") or "")
    if state != "finished":
        words = {
            "running": "This run had not finished when the page was made",
            "failed": "This run failed",
            "stopped": "This run was stopped",
        }
        words = words.get(state, f"The state of this run is {state}")
        section.warnings.append(f"{words}: {message}" if message else f"{words}.")
    if run.config_text is None:
        section.warnings.append("There is no config.yaml in this folder.")
    for fill in FILLED_BY[run.kind]:
        fill(section)
    section.about = _flat({key: value for key, value in run.status.items() if key not in ("kind", "state")})
    return section


def show_date(moment: datetime) -> str:
    """Day, month in words, year, time and, where it is known, time zone."""
    return f"{moment.day} {moment:%B %Y, %H:%M %Z}".strip()


def _facts(run: Run) -> dict[str, str]:
    status, facts = run.status, {}
    if run.kind == "pretrain":
        facts = {"Model": run.config.get("model"), "Objective": run.config.get("objective")}
    facts["Recording"] = status.get("recording")
    if status.get("checkpoint"):
        epoch = status.get("checkpoint_epoch")
        facts["Checkpoint"] = f"{status['checkpoint']}" + (f", epoch {epoch}" if epoch is not None else "")
    facts["Device"] = status.get("device")
    try:
        started, updated = (datetime.fromisoformat(str(status.get(name))) for name in ("started", "updated"))
        seconds = (updated - started).total_seconds()
        facts["Started"] = show_date(started)
        facts["Took"] = f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    except (ValueError, TypeError):
        facts["Started"] = status.get("started")
    return {name: str(value) for name, value in facts.items() if value}


def _flat(mapping: dict[str, Any], above: str = "") -> dict[str, str]:
    """Nested mappings as one, with names joined by dots and values as text."""
    flat = {}
    for name, value in mapping.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{above}{name}.")
        else:
            flat[f"{above}{name}"] = str(value)
    return flat
