"""What ``individual-node adapt`` does: from a bundle file and own pictures to a model, and what it says of it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from individual_node import adapted, image_folder, personal_model
from individual_node.adapted import Description
from individual_node.configuration import IndividualConfiguration
from individual_node.image_folder import OwnPictures
from individual_node.personal_model import ELSEWHERE, wilson_interval
from individual_node.settings import IndividualSettings
from protocol.commands.decoder_warning import warn_unconfined
from protocol.commands.progress_bar import progress_bar
from protocol.commands.revocation_warning import warn_revoked
from protocol.encoding import bounded_toml
from protocol.errors import InputError, fault_line
from protocol.files.user_files import check_free, check_outside
from protocol.learngene.images import choose_device
from protocol.learngene.network import describe
from protocol.node.bundle_reading import Reading, read_bundle
from protocol.node.configuration import load
from protocol.output import add_row, print_table, say, table
from protocol.pictures.reader import PictureReader
from protocol.visible_text import visible_name


@dataclass(frozen=True)
class Opening:
    """A bundle file, and what opens it: a node's configuration, or a trust store under a pinned root and the
    audience's encryption key."""

    bundle: Path
    trust: Path | None = None
    root: str = ""
    encryption_key: Path | None = None
    key_file: Path | None = None
    config: Path | None = None

    def read(self) -> Reading:
        """Verify and open it. This is the only way to a learngene that may be adapted.

        Raises:
            InputError: too little or too much is given, or a file cannot be read.
            RefusedError: the file is no bundle, or the first step of its verification that fails.
        """
        if (self.config is None) == (self.trust is None):
            raise InputError("give either --config, or --trust with --root and --encryption-key, to open the bundle")
        if self.trust is not None and (not self.root or self.encryption_key is None):
            raise InputError("--trust needs --root, the pinned root's public key, and --encryption-key")
        return read_bundle(
            self.bundle,
            config=self.config,
            trust=self.trust,
            root=self.root,
            encryption_key=self.encryption_key,
            key_file=self.key_file,
        )


def adapt_bundle(
    opening: Opening,
    data: Path,
    out: Path,
    *,
    method: str,
    changes: Sequence[str],
    folds: int,
    seed: int,
    device: str,
    bits: int | None = None,
) -> None:
    """Adapt a learngene to own pictures, keep the model, and show it.

    Args:
        data: folder of pictures, a folder for each class.
        out: folder to make for the model.
        method: empty: the form's own.
        changes: of settings, each ``NAME=VALUE``.
        folds: parts for the estimate of the accuracy; 0: none.
        device: as :func:`protocol.learngene.images.choose_device` takes it.
        bits: that count in pictures with 16 for a grey value, as :class:`PictureReader` takes it.

    Raises:
        InputError: a setting, the pictures or a file is wrong.
        RefusedError: the bundle does not pass its verification.
    """
    check_free(out)
    check_outside(out, [data], "the folder of pictures")
    node = None if opening.config is None else _configuration(opening.config)
    reading = opening.read()
    verified = reading.opened
    assert verified is not None
    architecture = verified.learngene.architecture
    chosen = personal_model.choose_method(method or None, architecture.form)
    settings = _settings(node, chosen.name, changes)
    size = personal_model.choose_size(architecture, settings)
    on = choose_device(device)
    with progress_bar() as observe, PictureReader(bits=bits) as reader:
        pictures = image_folder.read_tree(
            data, architecture.input, lambda done, total: observe(done, total, "reading pictures"), reader=reader
        )
        model = personal_model.adapt_to_pictures(
            verified,
            pictures,
            settings,
            size=size,
            method=chosen,
            folds=folds,
            seed=seed,
            device=on,
            node=opening.config,
            bits=bits,
            observe=observe,
        )
    adapted.save(model, out)
    warn_unconfined(reader)
    _show_model(model.description, pictures)
    say(f"model  {out}")
    if reading.withdrawn:
        warn_revoked("withdrawn", "this learngene", form=architecture.form, release=verified.release_digest)


def _configuration(path: Path) -> IndividualConfiguration:
    return load(path, IndividualConfiguration, "individual")


def _settings(node: IndividualConfiguration | None, method: str, changes: Sequence[str]) -> IndividualSettings:
    """The node's own settings, or the defaults, with the changes ``NAME=VALUE``."""
    values: dict[str, object] = {} if node is None else node.individual.model_dump(exclude=set(ELSEWHERE))
    for change in changes:
        name, sign, text = change.partition("=")
        names = [field for field in IndividualSettings.model_fields if field not in ELSEWHERE]
        if not sign or name not in names:
            raise InputError(f"--set wants NAME=VALUE, not {change!r}; the names are: {', '.join(names)}")
        values[name] = _value(text)
    try:
        return IndividualSettings.model_validate({**values, "methods": (method,)})
    except ValidationError as error:
        raise InputError(f"--set: {fault_line(error)}") from None


def _value(text: str) -> object:
    """Read a value as TOML, or ``none``; other words are texts."""
    if text == "none":
        return None
    try:
        return bounded_toml.parse(os.fsencode(f"value = {text}"))["value"]
    except ValueError:
        return text


def _show_model(description: Description, pictures: OwnPictures) -> None:
    """The table of classes, and the estimate in words."""
    estimate, total = description.estimate, sum(description.pictures)
    columns = ["class", "pictures", *(["named rightly"] if estimate is not None else [])]
    shown = table(*columns, right=columns[1:])
    for row, (name, count) in enumerate(zip(description.classes, description.pictures, strict=True)):
        add_row(shown, visible_name(name), str(count), *([f"{estimate.correct[row]} of {count}"] if estimate else []))
    print_table(shown)
    origin = description.learngene
    say(f"learngene  {origin.form}, release {origin.seq} of run {origin.run_id}, {origin.release[:16]}")
    weights = description.architecture.parameters
    say(f"size       {description.size}, {weights:,} inherited weights: {describe(description.architecture)}")
    say(f"method     {visible_name(description.method)}")
    if pictures.copies:
        first = visible_name(pictures.copies[0])
        say(f"copies     {len(pictures.copies)} pictures are there twice and count once: {first}")
    if estimate is None:
        say("estimate   none: a class has too few pictures for it, or none was asked for")
        return
    right = sum(estimate.correct)
    low, high = wilson_interval(right, total)
    guess = max(description.pictures) / total
    say(f"estimate   {right / total:.0%} of new pictures like these, 95 % interval {low:.0%} to {high:.0%}")
    say(f"           (always naming the largest class: {guess:.0%})")
    say(f"           {right} of {total} were named rightly, each by a model that was taught the other")
    say(f"           {estimate.folds - 1} of {estimate.folds} parts. Pictures from elsewhere can do worse.")
