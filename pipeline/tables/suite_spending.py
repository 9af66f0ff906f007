"""What the results of a suite cost, by the journals that lie beside them: nothing else is read.

So the report is the same wherever and whenever it is made.
"""

from pipeline.config.cost_factors import CostFactors
from pipeline.jobs.usage import cost_in_journal
from pipeline.tables.collect import Suite
from pipeline.tables.spending import Spending, spending

NO_FACTORS = CostFactors()


def suite_spending(suite: Suite) -> list[Spending]:
    """Return a row for each stage that has results with a journal, and their sum.

    Args:
        suite: Its results.
    """
    costs = []
    for result in suite.results.values():
        journal = suite.run_folder(result.stage, result.key) / "journal"
        if result.state != "missing" and any(journal.glob("attempt-*.jsonl")):
            costs.append(cost_in_journal(journal))
    return spending([cost for cost in costs if cost is not None], (), NO_FACTORS)
