"""A division of a dataset's classes into the three roles of the paper: base, open-world and novel."""

from dataclasses import dataclass


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
