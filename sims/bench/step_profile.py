"""Where the time of the collective's training step goes, operation by operation."""

import time

from torch.profiler import ProfilerActivity, profile

from protocol.output import say
from sims.bench.train_timing import TrainingStep

_ROWS, _NAME = 30, 50


def show_profile(width: float, seconds: float) -> None:
    """Print a table of torch's operations by their own processor time, of about so many seconds of training steps.

    Args:
        width: factor on the paper's widths.
    """
    step = TrainingStep.made(width, seconds, time.perf_counter)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step.rate(time.perf_counter)
    operations = found.key_averages()
    say(operations.table(sort_by="self_cpu_time_total", row_limit=_ROWS, max_name_column_width=_NAME))
