"""`rmcla reproduce`: the paper's tables, and others; its options are the fields of `Plan`."""

from __future__ import annotations

from rmcla_fast.cli.options import FINISHED_ATTACKS, enough_memory, options_of
from rmcla_fast.errors import NotFinite, UserError
from rmcla_fast.paper.plan import FASTAT_TABLE, Plan
from rmcla_fast.paper.reproduce import reproduce
from rmcla_fast.text import new_console, say
from rmcla_fast.training.interrupt import interrupted


@options_of(Plan)
def command(plan: Plan) -> None:
    """Train and evaluate a table of the paper again: the published figures, ours, their difference, and the cost.

    Writes FOLDER/TABLE-DATA.md and .json after every model, and for fastat a picture, FOLDER/fastat-DATA.png.
    The runs are in FOLDER/runs. After Ctrl-C, the same command continues.
    """
    files = f"{plan.markdown}, .json and .png" if plan.table == FASTAT_TABLE else f"{plan.markdown} and .json"
    begin = f"{plan.table} on {plan.data}; writes {files}, and the runs in {plan.out}/runs"
    say(new_console(stderr=True), begin)
    try:
        with enough_memory(plan.batch_size, FINISHED_ATTACKS):
            reproduce(plan, quiet=False)
    except NotFinite:
        _show(plan)
        raise
    except ValueError as error:
        raise UserError(str(error)) from error
    except KeyboardInterrupt as stop:
        raise interrupted(stop, "what is done is kept, and the same command goes on from there") from None
    _show(plan)


def _show(plan: Plan) -> None:
    new_console().print(plan.markdown.read_text(encoding="utf-8"), soft_wrap=True)
