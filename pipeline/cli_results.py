"""The commands that look back at runs: report, export."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, side by side.", metavar="RUN...")],
    out: Annotated[Path, typer.Option(help="The page.", metavar="FILE")] = Path("report.html"),
    cache: Annotated[
        Path | None,
        typer.Option(help="What the runs were evaluated on: tells its size, shows the images.", metavar="DIR"),
    ] = None,
    count: Annotated[int, typer.Option(help="Images among the best, and as many among the worst.", min=1)] = 4,
) -> None:
    """Runs -> one HTML page that needs nothing else: AP, where AP is lost, curves, cost, best and worst images.

    python -m pipeline report runs/first runs/second --cache val --out report.html
    """
    from . import report as stage

    print(stage.main(runs=runs, out=out, cache=cache, count=count))
