"""Send finished results to DVC's remote, and get those that this suite wants from there.

Those too that no dvc.lock names yet, which DVC's own commands pass over.
"""

from pipeline.config.params import load_params
from pipeline.project import Project
from pipeline.results import dvc_remote
from pipeline.results.port import ResultCache
from pipeline.submission.job_reports import JobReport
from pipeline.submission.put_back import put_back_results, unadopted_reports
from pipeline.submission.selection import Wanted, survey


def push_results(
    project: Project, cache: ResultCache, reports: list[JobReport], remote: str | None
) -> int:
    """Send a suite's results, the run-cache, and what jobs of the project have finished.

    Args:
        project: The project and the suite.
        cache: Where results are filed.
        reports: On the project's jobs.
        remote: Its name; None: DVC's default.

    Returns:
        Number of files that the remote did not have.

    Raises:
        UserError: There is no such remote.
        NotFinishedError: It cannot be reached.
    """
    put_back_results(project.root, cache)
    waiting = unadopted_reports(project.root, reports)
    keys = {report.state.fingerprint for report in waiting if report.state is not None}
    return dvc_remote.push(project.suite, {key for key in keys if key is not None}, remote)


def pull_results(project: Project, cache: ResultCache, remote: str | None) -> int:
    """Get the results of a suite's runs, as params.yaml has them, into DVC's cache.

    One run after another: the key of a run follows from the results of those before it.

    Args:
        project: The project and the suite.
        cache: Where results are filed.
        remote: Its name; None: DVC's default.

    Returns:
        Number of files that came.

    Raises:
        UserError: There is no such remote.
        NotFinishedError: It cannot be reached.
    """
    dvc_remote.pull_run_cache(project.suite, remote)
    params, count, asked = load_params(project.params_file), 0, set[str]()
    while True:
        facts = survey(project, params, Wanted(), cache).values()
        missing = {each.fingerprint for each in facts if each.outputs is None} - asked - {None}
        keys = {key for key in missing if key is not None}
        if not keys:
            return count
        count += dvc_remote.pull_files(project.suite, keys, remote)
        asked |= keys
