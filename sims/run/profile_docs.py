"""The numbers of the profiles as a table in the pages of datasets; `python -m sims.run.profile_docs` writes it."""

from importlib import resources
from pathlib import Path

from pydantic import BaseModel

from sims.data.datasets import DatasetName
from sims.run.profiles import PROFILES

#: Datasets whose page holds the table; the profiles of `folder` are those of `cifar100`.
PAGES: tuple[DatasetName, ...] = ("cifar100", "imagenet100")
BEGIN, END = "<!-- profiles: written by python -m sims.run.profile_docs -->", "<!-- /profiles -->"


def profile_table(dataset: DatasetName) -> str:
    """Two tables in Markdown: what differs between profiles, a column for each; then what they share."""
    profiles = PROFILES[dataset].values()
    differing = [
        ["purpose", *(profile.purpose for profile in profiles), ""],
        ["target tasks (shots: tasks)", *(_plain(profile.target_tasks) for profile in profiles), ""],
    ]
    shared: list[list[str]] = []
    for part in ("collective", "individual"):
        settings: list[BaseModel] = [getattr(profile, part) for profile in profiles]
        for name, field in type(settings[0]).model_fields.items():
            values = [_plain(getattr(one, name)) for one in settings]
            label, text = f"`{part}.{name}`", field.description or ""
            if len(set(values)) == 1:
                shared.append([label, values[0], text])
            else:
                differing.append([label, *values, text])
    first = _table(["setting", *(f"`{name}`" for name in PROFILES[dataset]), ""], differing)
    return f"{first}\n\nThe same in every profile:\n\n{_table(['setting', 'value', ''], shared)}"


def with_table(text: str, dataset: DatasetName) -> str:
    """``text`` with the table put between its two markers.

    Raises:
        ValueError: the text lacks the markers.
    """
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{profile_table(dataset)}\n\n{END}{after}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {count}" for key, count in value.items())
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    for page in PAGES:
        with resources.as_file(resources.files("sims") / page / "README.md") as found:
            path = Path(found)
            path.write_text(with_table(path.read_text(encoding="utf-8"), page), encoding="utf-8")
