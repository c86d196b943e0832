"""`python -m pgcontext.cli` is the `pgcontext` command."""

from pgcontext.cli import main

main()
