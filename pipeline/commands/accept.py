"""asl-pipe accept."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer


def accept(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Archives that bundles have left.")
    ],
) -> None:
    """File what a bundle brought back, as if it had been made here.

    Every file's sha256 is checked first. A run is filed if the project as it is now would make it
    from the same code, parameters and inputs, and is adopted into its suite and dvc.lock as
    `dvc repro` would; any other is refused in one line. Accepting twice adds nothing. Its journal
    goes to the tracker with the next asl-pipe sync; asl-pipe trace names the machine.

    Exit codes: 0 all is filed; 1 a run failed there; 2 something was refused; 75 a run is not
    finished: start the bundle again there and accept what it leaves then.

    Example: asl-pipe accept table6.results.zip
    """
    from pipeline.bundles.accept import Accepted, Verdict
    from pipeline.bundles.accept import accept as take
    from pipeline.bundles.unpack import read_archive
    from pipeline.commands.printing import console, text_table
    from pipeline.project import Project, find_project
    from pipeline.results.dvc_cache import DvcCache
    from pipeline.submission.adoption import adopt, files_for_git

    in_suite = Path("params.yaml").is_file()
    root = find_project(Path.cwd(), None if in_suite else "demo").root
    cache, found = DvcCache(), list[Accepted]()
    for file in [file.absolute() for file in files]:
        folder = read_archive(file).folder
        taken = take(root, file, cache)
        found += taken
        rows = [(each.name, str(each.verdict), (each.key or "")[:12], each.detail)
                for each in taken]  # fmt: skip
        console().print(text_table(("run", "", "key", ""), rows))
        if any(each.verdict in (Verdict.FILED, Verdict.THERE) for each in taken):
            project = Project(root, root / folder)
            with contextlib.chdir(project.suite):  # DVC lays out what lies below the current folder
                adopted = adopt(project, cache)
            if adopted:
                typer.echo(f"adopted into dvc.lock: {', '.join(adopted)}")
                paths = " ".join(files_for_git(adopted))
                typer.echo(f"to commit these results: git -C {project.suite} add {paths}")
    verdicts = {each.verdict for each in found}
    if Verdict.REFUSED in verdicts:
        raise typer.Exit(2)
    if Verdict.FAILED in verdicts:
        raise typer.Exit(1)
    if Verdict.UNFINISHED in verdicts:
        typer.echo("start the bundle again there; what is finished then is accepted likewise",
                   err=True)  # fmt: skip
        raise typer.Exit(75)
