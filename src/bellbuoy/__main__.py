"""`python -m bellbuoy` is the command `bellbuoy`."""

from bellbuoy.service.cli import command

command()
