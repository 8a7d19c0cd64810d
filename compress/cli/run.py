"""`compress run`"""

from pathlib import Path
from typing import Annotated

import typer

from compress.cli.common import JsonOption, SetOption, emit, names_data, recipe_of, typed, usual_recipe
from export.errors import UsageError, require


def command(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help='Recipe (TOML), or the name of a built-in one. Default: "demo", or "default" if data.path is set.',
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder to write; default for the demo: runs/demo.")
    ] = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train, prune, quantize, export and report, in order; steps that are up to date are skipped.

    If it is killed at any moment, the same command continues. Without data.path the built-in sample set is used.
    """
    require("torch", extra="train", purpose="compress run")
    from benchmarks.report.table import terminal_table
    from compress.pipeline import run
    from compress.progress import show_table

    chosen = recipe_of(recipe or usual_recipe(None, settings), settings)
    if out is None and (recipe or names_data(settings)):
        raise UsageError("give the folder for the run: --out runs/NAME")
    finished = run(chosen, out or Path("runs/demo"), command=typed())
    if not as_json:
        show_table(terminal_table(finished.report))
    lines = [
        *(
            f"{'ok  ' if verdict.ok else 'FAIL'} {verdict.text}: {verdict.detail}"
            for verdict in finished.report.verdicts
        ),
        f"report: {finished.page}",
        f"bundle: {finished.bundle}   (serve it: compress serve {finished.bundle})",
    ]
    emit(finished.report.model_dump(mode="json"), "\n".join(lines), as_json=as_json)
    finished.require_ok()
