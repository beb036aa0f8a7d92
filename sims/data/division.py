"""A division of a dataset's classes into the three roles of the paper, and the file ``split.json`` that holds one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from protocol.encoding.text import text_of
from protocol.errors import InputError, fault_line
from protocol.files.user_files import read_given
from protocol.pictures.formats import BITS
from protocol.visible_text import visible_name

#: Name of the file; it stands in a folder tree of images beside ``train/`` and ``test/``, or beside the class folders.
SPLIT_FILE = "split.json"
#: Height and width to which the images of a tree are brought whose split says nothing else, pixels.
SPLIT_SIZE = 32
_MAX_BYTES = 16 << 20
_LONGEST_NAME = 255


@dataclass(frozen=True)
class Division:
    """Class names by role (paper, section "Data"); no name stands in two roles.

    Attributes:
        base: classes of the collective's labelled tasks.
        open_world: classes that the collective meets unlabelled in its stream.
        novel: classes of the individuals' target tasks; the collective never sees them.
    """

    base: tuple[str, ...]
    open_world: tuple[str, ...]
    novel: tuple[str, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for name in self.classes:
            if name in seen:
                raise ValueError(f"class {name!r} stands twice in the division")
            seen.add(name)

    @property
    def classes(self) -> tuple[str, ...]:
        """All names: base, then open-world, then novel."""
        return self.base + self.open_world + self.novel


def _class_name(name: str) -> str:
    if not 0 < len(name) <= _LONGEST_NAME or name.startswith(".") or set(name) & set("/\\\0"):
        raise ValueError(
            f"{visible_name(name)!r} is no name of a class folder: 1 to {_LONGEST_NAME} characters, no slash, and no "
            "dot at its beginning"
        )
    return name


#: The name of a class folder: a name, not a way to another place.
ClassName = Annotated[str, AfterValidator(_class_name)]


class Split(BaseModel):
    """``split.json``.

    Attributes:
        base, open_world, novel: names of the class folders by role.
        size: height and width of the images in the world, pixels; the collective's network halves it five times.
        bits: that count in images with 16 for a grey value, which do not say it themselves; None: there are none.
        names: usual names of the classes; for readers of the file, not used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    base: tuple[ClassName, ...] = Field(min_length=2)
    open_world: tuple[ClassName, ...] = Field(min_length=1)
    novel: tuple[ClassName, ...] = Field(min_length=2)
    size: int = Field(default=SPLIT_SIZE, ge=32, le=256)
    bits: int | None = Field(default=None, ge=BITS[0], le=BITS[-1])
    names: dict[str, str] = {}

    @model_validator(mode="after")
    def _each_class_stands_once(self) -> "Split":
        _ = self.division
        return self

    @property
    def division(self) -> Division:
        """The division into roles, without the rest."""
        return Division(self.base, self.open_world, self.novel)


def read_split(path: Path) -> Split:
    """Read a ``split.json``.

    Raises:
        InputError: it cannot be read, is no JSON, or lacks a role, names a class twice or holds an unknown key.
    """
    data = read_given(path, "the split", max_bytes=_MAX_BYTES)
    try:
        return Split.model_validate_json(text_of(data))
    except ValidationError as error:
        raise InputError(
            f"{visible_name(path)}: {fault_line(error)}; it holds lists of class folders under base, open_world and "
            "novel, and may hold size, bits and names"
        ) from error
    except ValueError as error:
        raise InputError(f"{visible_name(path)}: {error}") from None
