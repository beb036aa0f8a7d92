"""The fuzzing program: writes the seeds, runs one target with atheris, or shows what a target makes of one file."""

import sys
from pathlib import Path
from random import Random

USAGE = """usage: python -m tests.fuzz.fuzz_protocol seeds FOLDER
       python -m tests.fuzz.fuzz_protocol TARGET FOLDER [libFuzzer's options and more folders of inputs]
       python -m tests.fuzz.fuzz_protocol TARGET FILE

docs/fuzzing.md has the commands of whole runs."""

#: A hang is over 1 s, memory is the whole process with its interpreter; both stop a run. The figures come at its end.
LIMITS = ("-timeout=1", "-rss_limit_mb=200", "-report_slow_units=1", "-print_final_stats=1")


def main(arguments: list[str]) -> None:
    """One of the three uses of ``USAGE``."""
    match arguments:
        case ["seeds", folder]:
            from tests.fuzz import seeds

            seeds.write(Path(folder))
        case [name, place, *options] if Path(place).is_dir():
            fuzz(name, Path(place), options)
        case [name, place] if Path(place).is_file():
            from tests.fuzz.targets import named

            print("accepted" if named(name).accepts(Path(place).read_bytes()) else "refused")
        case _:
            raise SystemExit(USAGE)


def fuzz(name: str, folder: Path, options: list[str]) -> None:
    """Run one target on its seeds and on what earlier runs found, until libFuzzer ends the process."""
    import atheris

    # Only what is imported here counts as covered.
    with atheris.instrument_imports(include=["protocol"]):
        from tests.fuzz.targets import named
    from tests.fuzz.mutations import change_json

    target = named(name)
    for made in ("corpus", "found"):
        (folder / name / made).mkdir(parents=True, exist_ok=True)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)

        def change(text: bytes) -> bytes:
            return change_json(text, random) if random.random() < 0.6 else atheris.Mutate(text, most)

        return (target.inside(data, change) if random.random() < 0.8 else change(data))[:most]

    atheris.Setup(
        [
            sys.argv[0],
            *LIMITS,
            f"-dict={folder / 'words.dict'}",
            f"-artifact_prefix={folder / name / 'found'}/",
            str(folder / name / "corpus"),
            str(folder / name / "seeds"),
            *options,
        ],
        target.accepts,
        custom_mutator=mutate,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
