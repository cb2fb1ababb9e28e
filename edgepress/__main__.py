"""`python -m edgepress`."""

from edgepress.cli import main

main()
