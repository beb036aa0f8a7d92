"""The known datasets: division of the classes, size of the images, and their source."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from protocol.errors import InputError
from sims.cifar100.split import CIFAR100
from sims.data.division import SPLIT_FILE, SPLIT_SIZE, Division
from sims.imagenet100.split import IMAGENET100

#: Folder of what is downloaded, drawn or decoded once, unless a command names another.
CACHE = Path("~/.learngene/data")

DatasetName = Literal["cifar100", "imagenet100", "folder"]


@dataclass(frozen=True)
class KnownDataset:
    """The facts about a dataset that are known before any image is read.

    Attributes:
        title: its usual name.
        division: the role of every class; None: the folder's ``split.json`` says it.
        size: height and width of the images in a world, pixels; of ``folder`` only if the split names none.
        origin: the source of the images without a folder; empty if a folder must be given.
        wanted: the required content of ``data``.
    """

    title: str
    division: Division | None
    size: int
    origin: str
    wanted: str


#: Each has a folder ``sims/<name>`` with its Flower app and its page.
DATASETS: Mapping[DatasetName, KnownDataset] = {
    "cifar100": KnownDataset(
        title="CIFAR-100",
        division=CIFAR100,
        size=32,
        origin="CIFAR-100 (download) or else the stand-in",
        wanted="train/<class>/ and test/<class>/ of the 100 classes, or the published archive",
    ),
    "imagenet100": KnownDataset(
        title="ImageNet100",
        division=IMAGENET100,
        size=84,
        origin="",
        wanted="train/<WordNet id>/ and test/<WordNet id>/ (or val/), or <WordNet id>/ alone, of the 100 classes of "
        "mini-ImageNet",
    ),
    "folder": KnownDataset(
        title="a folder of your own",
        division=None,
        size=SPLIT_SIZE,
        origin="",
        wanted=f"{SPLIT_FILE}, and train/<class>/ and test/<class>/ (or val/), or <class>/ alone",
    ),
}


def dataset_name(text: str) -> DatasetName:
    """The dataset with this name.

    Raises:
        InputError: there is none.
    """
    for name in DATASETS:
        if name == text:
            return name
    raise InputError(f"there is no dataset {text!r}; there are: {', '.join(DATASETS)}")


def check_data_named(name: DatasetName, *, data: bool, stand_in: bool) -> None:
    """Refuse a run without images.

    Args:
        data: whether a folder of images was named.
        stand_in: whether the user chose the stand-in.

    Raises:
        InputError: the dataset needs a folder, or has no stand-in.
    """
    known = DATASETS[name]
    if data and stand_in:
        raise InputError("a data folder and the stand-in were both asked for; choose one")
    if stand_in and known.division is None:
        raise InputError(f"{name} is {known.title}, which has no stand-in: give --data FOLDER with {known.wanted}")
    if not (data or stand_in or known.origin):
        stand_in_too = "" if known.division is None else "; or draw the stand-in with --stand-in"
        raise InputError(f"{known.title} cannot be downloaded: give --data FOLDER with {known.wanted}{stand_in_too}")
