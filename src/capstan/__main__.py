"""`python -m capstan` is the `capstan` command."""

from capstan.cli import main

main(prog_name="capstan")
