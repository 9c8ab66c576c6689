"""Logs, health files and metrics now; traces and audit join them later.

May import: `errors`, `ids`, `settings`. Event names are `noun_past_tense`; what varies is a field.
"""

from gati_core.observe._durations import Durations, cumulative
from gati_core.observe._garbage import settle_garbage_collector
from gati_core.observe._health import exit_by_health_file
from gati_core.observe._logging import set_up_logging

__all__ = ["Durations", "cumulative", "exit_by_health_file", "set_up_logging", "settle_garbage_collector"]
