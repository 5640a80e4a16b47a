"""The command `rmcla` as `python -m rmcla_fast.cli`, which is how torchrun starts it."""

from rmcla_fast.cli import main

main()
