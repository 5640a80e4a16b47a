"""`python -m rmcla_fast.cli` is the command `rmcla`; torchrun starts it so."""

from rmcla_fast.cli import main

main()
