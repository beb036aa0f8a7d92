"""``learngene bench scale``: a whole round of the protocol, with every individual a site of its own."""

from pathlib import Path

from protocol.exchange.collective_ledger import CollectiveLedger
from protocol.exchange.individual_ledger import IndividualLedger
from sims.bench import scale_timing
from sims.bench.made_bundle import RUN
from tests.sims.bench.nobody import nobody


def test_every_individual_of_the_round_inherits(tmp_path: Path) -> None:
    scale_timing.round_of(3, str(tmp_path))()
    for number in range(3):
        ledger = IndividualLedger(tmp_path / f"individual-{number}")
        assert ledger.latest(RUN, "paper") is not None
        ledger.close()
    ledger = CollectiveLedger(tmp_path / "collective")
    assert len(ledger.releases(RUN)) == 1
    ledger.close()


def test_rows_are_for_each_individual() -> None:
    """The clock says that every round takes one second."""
    ticks = iter(range(100)).__next__
    time, memory = scale_timing.measure(1, lambda: float(ticks()), nobody, many=20)
    assert (time.ours.median, time.other.median) == (1000 / 20, 1000 / 10)
    assert memory.unit == "kB"
