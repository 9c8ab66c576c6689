"""What changed between two versions of a type, and whom it breaks.

`diff_handlers` compares all types of two versions of a handler, `diff_documents` two types, `is_assignable` says
whether one type takes all values of another, `check_use` whether a handler may use a module's method, `value_diff`
compares values.

May import: the rest of `gtype`.
"""

from gati_core.gtype.diff._assign import is_assignable
from gati_core.gtype.diff._compare import diff_documents
from gati_core.gtype.diff._handlers import HandlerTypes, check_use, diff_handlers, types_identity
from gati_core.gtype.diff._records import Change, Diff, Operation, Severity, Side, summary_of
from gati_core.gtype.diff._report import render
from gati_core.gtype.diff._values import ChangeDoesNotFit, ValueChange, apply_changes, value_diff

__all__ = [
    "Change",
    "ChangeDoesNotFit",
    "Diff",
    "HandlerTypes",
    "Operation",
    "Severity",
    "Side",
    "ValueChange",
    "apply_changes",
    "check_use",
    "diff_documents",
    "diff_handlers",
    "is_assignable",
    "render",
    "summary_of",
    "types_identity",
    "value_diff",
]
