"""`python -m pipeline`: the command line where the program asl-pipe need not be on the path."""

from pipeline.cli import main

main()
