"""The progress bar of an export, with the time left."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from export.common import ProgressCallback


@contextmanager
def export_progress(console: Console) -> Iterator[ProgressCallback]:
    """A callback for `export_repository` that draws the bar, which goes at the end."""
    columns = (TextColumn("{task.description:28}"), BarColumn(), TimeRemainingColumn(), TextColumn("left"))
    with Progress(*columns, console=console, transient=True) as display:
        task = display.add_task("reading the bundle", total=None)
        yield lambda text, done, total: display.update(task, description=text, completed=done, total=total)
