"""Where the program starts: `asl-pipe`, and `python -m pipeline` where that is not on the path.

The command line is imported here and not at the top: what keeps it from being imported is one line.
"""

import sys

from pipeline.loading import hiding_file, import_failure


def main() -> None:
    """Run the command line and exit."""
    if (line := hiding_file()) is not None:
        sys.exit(_say(line))
    try:
        from pipeline import cli
    except Exception as error:
        if (line := import_failure(error)) is None:
            raise
        sys.exit(_say(line))
    cli.main()


def _say(line: str) -> int:
    sys.stderr.write(f"asl-pipe: {line}\n")
    return 2


if __name__ == "__main__":
    main()
