"""What a person sees of a run: progress on the console, figures, and one HTML page."""

from .console import Console as Console
from .numbers import human_bytes as human_bytes
from .numbers import human_time as human_time
from .numbers import pretty_unit as pretty_unit
from .numbers import with_error as with_error
from .write import write_report as write_report
