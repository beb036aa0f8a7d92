"""Tests of the batches and the samples that are drawn from a training set."""

from dataclasses import replace

import numpy as np
import torch

from collective_node.training_set import TrainingSet, class_balanced_batches
from protocol.learngene.images import DeviceImages, Normalisation


def test_rehearsal_gives_every_class_equally_often_and_every_image_before_any_twice() -> None:
    pools = [torch.arange(0, 30), torch.arange(30, 60), torch.arange(60, 70)]
    drawn = torch.cat(list(class_balanced_batches(pools, 9, 10, torch.Generator().manual_seed(0))))
    assert len(drawn) == 90
    counts = torch.bincount(drawn, minlength=70)
    assert counts[:60].tolist() == [1] * 60
    assert counts[60:].tolist() == [3] * 10


def test_rehearsal_mixes_classes_inside_a_batch() -> None:
    pools = [torch.arange(c * 100, c * 100 + 100) for c in range(4)]
    for batch in class_balanced_batches(pools, 5, 16, torch.Generator().manual_seed(0)):
        assert torch.bincount(batch // 100, minlength=4).tolist() == [4] * 4


def made_set(*sizes: int) -> TrainingSet:
    """Images of classes of these sizes, of which the first is not trained on; outputs count down."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 4, 4, 3), dtype=np.uint8)
    images = DeviceImages.load(pixels, labels, Normalisation.of(pixels), torch.device("cpu"))
    rows = tuple(torch.nonzero(images.labels == label)[:, 0] for label in range(1, len(sizes)))
    return TrainingSet(images, rows, torch.tensor([-1, *reversed(range(len(sizes) - 1))]))


def test_no_image_is_drawn_twice_and_all_where_fewer_are_there() -> None:
    data = made_set(5, 10, 3, 27)
    for count, expected in ((9, 9), (30, 30), (100, 40)):
        drawn = data.distinct(count, torch.Generator().manual_seed(0)).tolist()
        assert len(drawn) == len(set(drawn)) == expected
        assert set(drawn) <= set(range(5, 45))


def test_a_batch_is_the_images_of_its_rows_with_the_outputs_of_their_labels() -> None:
    data = made_set(2, 3, 4)
    assert len(data) == 7
    assert data.every_row.tolist() == list(range(2, 9))
    rows = torch.tensor([8, 2, 5])
    x, outputs = data.batch(rows)
    assert torch.equal(x, data.images.batch(rows)[0])
    assert outputs.tolist() == [0, 1, 0]
    found = list(data.batches(data.every_row, size=3))
    assert [len(outputs) for _, outputs in found] == [3, 3, 1]
    assert torch.equal(torch.cat([x for x, _ in found]), data.images.batch(data.every_row)[0])


def test_by_image_every_image_occurs_equally_often_and_by_class_every_class() -> None:
    data = made_set(1, 30, 6)
    drawn = {}
    for by_class in (True, False):
        batches = replace(data, by_class=by_class).balanced(9, 8, torch.Generator().manual_seed(0))
        counts = torch.bincount(torch.cat(list(batches)), minlength=37)[1:]
        drawn[by_class] = [int(counts[:30].sum()), int(counts[30:].sum())]
    assert drawn == {True: [36, 36], False: [60, 12]}


def test_images_without_a_label_fill_their_share_of_every_batch_and_have_no_output() -> None:
    data = made_set(2, 6, 4)
    more = np.random.default_rng(1).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    joined = data.with_unlabelled(more, 0.25)
    assert len(joined) == len(data) == 10
    assert joined.every_row.tolist() == [*data.every_row.tolist(), *range(12, 17)]
    batches = list(joined.balanced(5, 8, torch.Generator().manual_seed(0)))
    for batch in batches:
        _, outputs = joined.batch(batch)
        assert (outputs == -1).tolist() == (batch >= 12).tolist()
        assert torch.bincount(outputs + 1).tolist() == [2, 3, 3]
    nameless = torch.cat(batches)
    assert torch.bincount(nameless[nameless >= 12] - 12).tolist() == [2] * 5  # each before any again
    x, _ = joined.batch(torch.tensor([13]))
    own = DeviceImages(torch.from_numpy(more), torch.zeros(5).long(), data.images.mean, data.images.std)
    assert torch.equal(x, own.batch(torch.tensor([1]))[0])
