"""Tests of the annotator at the annotation page, as an evolution sees them: labels are waited for, and become rows."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from collective_node.annotation.labels import Decision, LabelBook, Labels, read
from collective_node.annotation.unknown_set import UnknownSet, cycle_folder, load
from collective_node.open_world.annotators import LabelQuery, Oracle, PageAnnotator
from tests.collective_node.made_evolution import CYCLES, evolution, truth


def query(count: int = 6) -> LabelQuery:
    """Eight images of a stream, numbered from 100, of which the even ones and the last look unknown."""
    rng = np.random.default_rng(0)
    flagged = np.array([True, False, True, False, True, True, True, True])
    unknown = UnknownSet(
        images=rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8),
        scores=rng.random(count),
        features=rng.random((count, 4), dtype=np.float32),
        known=("cat", "dog"),
    )
    return LabelQuery(0, np.arange(100, 108), flagged, unknown, at_most=1)


def decide(folder: Path) -> None:
    """What an annotator does at the page: two classes, one of them known, one image dismissed, one left alone."""
    unknown = load(folder)
    with LabelBook(folder, images=len(unknown), known=unknown.known) as book:
        book.decide(Decision(id="a" * 8, verdict="named", images=(0, 3), name="axolotl"))
        book.decide(Decision(id="b" * 8, verdict="named", images=(1,), name="Cat"))
        book.decide(Decision(id="c" * 8, verdict="dismissed", images=(2,)))
        book.decide(Decision(id="d" * 8, verdict="named", images=(4, 5), name="newt"))
        book.decide(Decision(id="e" * 8, verdict="finished"))


def test_what_was_named_comes_back_as_rows_of_the_stream(tmp_path: Path) -> None:
    waited: list[Path] = []

    def wait(folder: Path) -> Labels:
        waited.append(folder)
        np.testing.assert_array_equal(load(folder).images, query().unknown.images)
        decide(folder)
        return read(folder)

    named = PageAnnotator(tmp_path, wait).name(query())
    # Images 0 to 5 of the unknown set are the rows 100, 102, 104, 105, 106, 107.
    assert dict(zip(named.rows, named.names, strict=True)) == {
        100: "axolotl",
        105: "axolotl",
        106: "newt",
        107: "newt",
    }
    assert waited == [cycle_folder(tmp_path, 1)]


def test_a_node_that_was_killed_while_it_waited_finds_the_labels_again(tmp_path: Path) -> None:
    first = PageAnnotator(tmp_path, lambda folder: (decide(folder), read(folder))[1]).name(query())
    again = PageAnnotator(tmp_path, read).name(query())
    assert again == first


def test_the_oracle_names_the_most_frequent_unknown_classes_and_gives_examples(tmp_path: Path) -> None:
    made = evolution(tmp_path / "state", CYCLES.model_copy(update={"cycles": 1}))
    collective, _ = evolution(tmp_path / "tasks").run()
    assert made.open_world is not None
    stream = made.open_world.stream
    whole = stream.query(collective, stream.recognise(collective, 0, "max-logit"), 0)
    # Two images of one class, three of another, one of a third, two known ones.
    names = truth().stream_names
    wanted = {"class 8": 2, "class 9": 3, "class 10": 1, "class 0": 2}
    flagged = np.zeros(len(whole.rows), dtype=np.bool_)
    for name, count in wanted.items():
        flagged[[i for i, row in enumerate(whole.rows) if names[row] == name][:count]] = True
    unknown = replace(
        whole.unknown,
        images=whole.unknown.images[flagged],
        scores=whole.unknown.scores[flagged],
        features=whole.unknown.features[flagged],
    )
    asked = LabelQuery(0, whole.rows, flagged, unknown, at_most=5)
    named = Oracle(truth(), 0).name(asked)
    assert {name: named.names.count(name) for name in set(named.names)} == {"class 8": 2, "class 9": 3}
    one = Oracle(truth(), 0).name(replace(asked, at_most=1))
    assert set(one.names) == {"class 9"}
    more = Oracle(truth(), 1).name(asked)
    assert len(more.rows) == len(named.rows) + 2
    assert [names[row] for row in more.rows] == more.names
