"""Names that commands show before anything else is loaded."""

REPORT_KEY = "suite"
"""The report has one run in a suite; this is its key."""
