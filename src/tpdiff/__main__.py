"""`python -m tpdiff` is the same as `tpdiff`."""

from tpdiff.cli import main

main()
