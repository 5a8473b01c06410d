"""`python -m shoal` is the command `shoal`."""

from shoal.node.cli.main import run

run()
