"""For generators of code in other languages: the words and rules that their validators share with ours."""

from gati_core.gtype._ecmascript import to_ecmascript
from gati_core.gtype._expected import counted, expected, rule_text, tuple_lengths
from gati_core.gtype._interpreter import tag_of
from gati_core.gtype._nesting import endless

__all__ = ["counted", "endless", "expected", "rule_text", "tag_of", "to_ecmascript", "tuple_lengths"]
