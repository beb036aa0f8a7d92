"""The commands that the simulations add to ``learngene``; each is loaded when it is called."""

from protocol.commands.lazy_group import CommandEntry

# Of the extra `sim`, which a node's installation lacks although this package is in it.
_NEEDS = ("ray", "scipy", "matplotlib", "jinja2")


def _entry(name: str, source: str, summary: str) -> CommandEntry:
    return CommandEntry(name, source, summary, needs=_NEEDS, extra="sim")


COMMANDS: tuple[CommandEntry, ...] = (
    _entry(
        "run", "sims.run.run_command:register", "Run the whole experiment, and make its tables, figures and report."
    ),
    _entry(
        "results",
        "sims.results.results_command:register",
        "Print the results of a run again, or one table over several runs.",
    ),
    _entry(
        "report",
        "sims.results.results_command:register",
        "Make the figures and the report of a run again from its results.json.",
    ),
    _entry("privacy", "sims.results.privacy_command:register", "Table and figure of accuracy against epsilon."),
    _entry("boundary", "sims.boundary.boundary_command:register", "Attack both parties on this machine."),
    _entry("leakage", "sims.leakage.leakage_command:register", "Attack a run's released learngene."),
    _entry("world", "sims.data.world_command:register", "Worlds: the private folders of a simulation's parties."),
    CommandEntry("bench", "sims.bench.bench_command:register", "How fast this machine is at what a user waits for."),
)
