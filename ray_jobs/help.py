"""The text of `murine --help` and `murine <verb> --help`, made from the config dataclasses themselves.

What comes in: a verb, the width of the terminal in characters, and whether it takes colour.
What goes out: text. Nothing heavy is imported, and no recipe is parsed: its first comment line describes it.
"""

import io
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray_jobs.config import VERBS, Verb, find_verb, list_recipes
from ray_jobs.keys import Key, level_keys

NARROW = 100  # characters of a terminal, below which a table would leave no room for the meaning
CELL_WIDTH = 24  # characters of a column, beyond which its cells wrap and leave the line to the meaning
MOST_DESCRIBED = 20  # recipes of a verb that are listed with their descriptions
Row = tuple[str, str, str, str, str]  # key, type, default, unit and range, meaning
OPTIONS = {
    "--help": "this text, or with a verb its keys and recipes",
    "--version": "the version of murine",
    "--print-config": "print the complete config instead of running; usable as a recipe",
    "--debug": "give the traceback of an error",
}


def command_help() -> str:
    """The verbs and options, a line each."""
    verbs = _listed({verb.name: verb.summary for verb in VERBS.values()})
    return (
        "murine <verb> [recipe=<name>] key=value ...\n\n"
        "Pretrain models of mouse visual cortex without labels and measure how well they predict neurons.\n\n"
        f"Verbs:\n{verbs}\n\nOptions:\n{_listed(OPTIONS)}\n\n"
        "`murine <verb> --help` lists the keys of a verb and its recipes."
    )


def verb_help(name: str, width: int, colour: bool) -> str:
    """A verb's keys (type, default, unit and range, meaning) as a table, its recipes and an example.

    Args:
        name: the verb.
        width: characters in a line.
        colour: whether to mark the text with the terminal's colours.

    Raises:
        ConfigError: no such verb.
    """
    verb = find_verb(name)
    rows = list(_rows(verb.config_class(), verb))
    keys = _list_of_keys(rows, width) if width < NARROW else _table(rows, width, colour)
    firsts = "|".join(dict.fromkeys(form.split()[0] for form, _ in verb.forms))
    words = f"<{firsts}> ..." if verb.forms else "[recipe=<name>]"
    forms = f"{_listed({f'murine {name} {form}': text for form, text in verb.forms})}\n\n" if verb.forms else ""
    return (
        f"murine {name} {words} key=value ...\n\n{verb.summary[0].upper()}{verb.summary[1:]}.\n\n"
        f"{forms}{keys}\n\n"
        f"Recipes (recipe=<name>, or the path of a .yaml file):\n{_recipes(name, width) or '  none'}\n\n"
        f"Example:\n  {verb.example}"
    )


def describe_recipe(path: Path) -> str:
    """The first comment line of a recipe's file, without its `#`; empty where there is none."""
    with path.open(encoding="utf-8") as lines:
        return next((line.lstrip("# ").strip() for line in lines if line.startswith("#")), "")


def _listed(rows: dict[str, str]) -> str:
    widest = max(map(len, rows), default=0)
    return "\n".join(f"  {name:<{widest}}  {text}".rstrip() for name, text in rows.items())


def _recipes(verb: str, width: int) -> str:
    """Recipes with their descriptions, or only their names where there are too many for one look."""
    recipes = list_recipes(verb)
    if len(recipes) <= MOST_DESCRIBED:
        return _listed({recipe: describe_recipe(path) for recipe, path in recipes.items()})
    names = textwrap.wrap("  ".join(recipes), width - 2, break_long_words=False, break_on_hyphens=False)
    described = f"`murine recipes verb={VERBS[verb].recipes or verb}` says what each one is."
    return textwrap.indent("\n".join([*names, "", described]), "  ")


def _table(rows: list[Row], width: int, colour: bool) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("key", style="cyan", no_wrap=True)
    for title in ("type", "default", "unit and range"):
        table.add_column(title, max_width=CELL_WIDTH, overflow="fold")
    table.add_column("meaning", overflow="fold")
    for row in rows:
        table.add_row(*row)
    # markup would swallow the brackets of `[a,b]` in a meaning
    console = Console(file=io.StringIO(), width=width, force_terminal=colour, markup=False, highlight=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def _list_of_keys(rows: list[Row], width: int) -> str:
    lines = []
    for path, kind, default, allowed, meaning in rows:
        notes = [note for note in (kind, allowed, f"default {default}" if default else "") if note]
        lines += textwrap.wrap(f"{path}  {'; '.join(notes)}", width, subsequent_indent="    ")
        lines += textwrap.wrap(meaning, width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def _rows(cls: type, verb: Verb, path: str = "") -> Iterator[Row]:
    others = {other.config: other.name for other in VERBS.values() if other is not verb and not other.recipes}
    for key in level_keys(cls, path).values():
        other = others.get(f"{key.kind.__module__}:{key.kind.__qualname__}") if key.is_group else None
        if other is not None:
            yield f"{key.path}.*", "", "", "", f"{key.meaning}: as in `murine {other} --help`"
        elif key.is_group:
            yield from _rows(key.kind, verb, key.path)
        else:
            yield key.path, key.type_name, _default(key), key.allowed, key.meaning


def _default(key: Key) -> str:
    def written(value: Any) -> str:
        if isinstance(value, list):
            return f"[{','.join(map(written, value))}]"
        return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))

    return written(key.default)
