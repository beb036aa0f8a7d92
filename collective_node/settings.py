"""Settings of the collective: its network, training, open world, learngenes and privacy."""

from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from collective_node.network.growth_schedule import PAPER, parse
from protocol.encoding.blob import Dtype
from protocol.learngene.architecture import COMPACT_FORMS, MOST_SIZES, Form, SizeName
from protocol.learngene.learngene import Estimator, PrivacyScope

#: Against forgetting: its own past images again, elastic weight consolidation on its own past tasks, nothing (the
#: paper's).
Strategy = Literal["replay", "ewc", "none"]
#: How unknown an image looks; ``msp`` is Eq. 2.
Score = Literal["msp", "max-logit", "energy", "gen", "fdbd", "relative-mahalanobis", "nearest-neighbour"]
SCORES: tuple[Score, ...] = get_args(Score)
#: Against the bias between old and new classes after a cycle's training: nothing, the norms of their output weights
#: aligned (Zhao et al. 2020), a balanced fine-tuning (Castro et al. 2018).
Bias = Literal["none", "weight-alignment", "balanced"]
#: Which layers the form ``paper`` takes: by the trend of gradients (Eq. 4, 5), or by their likeness to those of a
#: pseudo-descendant (arXiv 2305.02279).
Criterion = Literal["gradient-trend", "similarity"]
#: Classifier behind a compact network's features, while it is trained.
CompactClassifier = Literal["mlp", "linear", "cosine"]
#: Most weights of a compact network, by the setting's name; ``own``: it has the collective's own top layers.
Budget = Literal["own", "0.25M", "0.5M", "1M", "2M"]
BUDGETS: Mapping[Budget, int] = {"0.25M": 250_000, "0.5M": 500_000, "1M": 1_000_000, "2M": 2_000_000}
#: Of the learning rate over the steps of a training.
Schedule = Literal["one-cycle", "constant", "step"]
#: Which images of a batch with turned ones teach classes besides: all, or those that stand upright.
RotationClasses = Literal["all", "upright"]
#: Regularisers of every training of the network, and what each is when it is off; those of condensing have the prefix
#: ``condense_``.
REGULARISERS: Mapping[str, float] = {
    "mixup": 0.0,
    "manifold_mixup": 0.0,
    "rotation": 0.0,
    "randaugment": 0,
    "ema": 0.0,
    "swa": 0.0,
}
#: Settings that came later, with the values that mean what was meant before they were there. Fingerprints leave them
#: out where they have these, so what an earlier version kept can be used still.
LATER: Mapping[str, object] = {
    "copies": "divided",
    "schedule": "one-cycle",
    **REGULARISERS,
    "rotation_share": 0.75,
    "rotation_classes": "all",
    "randaugment_magnitude": 5.0,
    "consolidate_generations": 0,
    "generation_weight": 0.5,
    **{f"condense_{name}": None for name in REGULARISERS},
    "condense_generations": 0,
    "condense_sizes": (),
    "condense_sizes_distil": 0.5,
    "blob_dtype": "float32",
}
#: Widths of the thirteen convolutions, at width factor 1.
BASE_WIDTHS = (64, 64, 64, 64, 128, 128, 128, 256, 256, 256, 256, 256, 256)


_IN_CONDENSING = "the same in the training of compact networks; none: as in the collective's own trainings"


class CollectiveSettings(BaseModel):
    """Everything that decides what the collective learns; the defaults are the profile ``quick``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    width: float = Field(0.25, gt=0, le=2, description="factor on every layer's channels")
    base_widths: tuple[int, ...] = Field(
        BASE_WIDTHS, min_length=13, max_length=13, description="channels of the convolutions, at width factor 1"
    )
    classifier: Literal["mlp", "linear", "cosine"] = Field(
        "linear",
        description="behind the convolutions: two hidden layers (mlp, the paper's), or none (linear, or cosine "
        "between features and a vector for each class)",
    )
    tasks: int = Field(13, ge=1, description="sequential tasks; 13 partition the 64 base classes")
    classes_per_task: int = Field(5, ge=2)
    strategy: Strategy = Field("replay", description="against forgetting; none is the paper's")
    expansion: tuple[str, ...] = Field(
        (PAPER,),
        description="growth steps over the tasks: `widen 2 +64`, `deepen 5 identity`; paper: its twenty; empty: none",
    )
    growth_noise: float = Field(
        0.0, ge=0, le=1, description="noise on copied weights: its standard deviation over that of the layer's weights"
    )
    epochs: float = Field(
        0.2, gt=0, description="passes over the images of all known classes (none, ewc: of the task) a task"
    )
    consolidate_epochs: float = Field(
        2.0, ge=0, description="passes over the images of all known classes after the last task, with replay alone"
    )
    batch_size: int = Field(64, ge=2)
    parts: int = Field(
        1, ge=1, le=64, description="of a batch, computed side by side, each with BatchNorm statistics of its own"
    )
    learning_rate: float = Field(0.05, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    schedule: Schedule = Field(
        "one-cycle",
        description="of the learning rate over each training, after a rise over its first 15 %; step: a tenth from "
        "60 % of the steps on, a hundredth from 80 % on",
    )
    mixup: float = Field(
        0.0, ge=0, description="alpha of the share by which images and labels are mixed in pairs; 0: off"
    )
    manifold_mixup: float = Field(
        0.0, ge=0, description="alpha, where what is mixed goes into a layer drawn for each batch; 0: off"
    )
    rotation: float = Field(0.0, ge=0, description="weight of a second task, to tell an image's quarter turns; 0: off")
    rotation_share: float = Field(
        0.75,
        gt=0,
        lt=1,
        description="of a batch's images that are turned, in place: a step costs no more",
    )
    rotation_classes: RotationClasses = Field(
        "all", description="which images teach their class then: turned ones too, or upright ones alone"
    )
    randaugment: int = Field(
        0, ge=0, le=10, description="operations for each image: colours, shear, rotation, translation, cutout; 0: off"
    )
    randaugment_magnitude: float = Field(5.0, gt=0, le=10, description="of these operations")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of the exponential average of weights that a training ends with; 0: off"
    )
    swa: float = Field(
        0.0, ge=0, le=1, description="last share of a training's steps, whose mean weights it ends with; 0: off"
    )
    consolidate_generations: int = Field(
        0,
        ge=0,
        le=10,
        description="further generations of the consolidation, each taught by the one before; all share its epochs",
    )
    generation_weight: float = Field(
        0.5, gt=0, le=1, description="of the soft labels of the generation before, at distil_temperature"
    )
    ewc: float = Field(10_000.0, gt=0, description="weight of the EWC penalty, strategy ewc")
    ewc_samples: int = Field(512, ge=1, description="images of a task behind its part of the EWC penalty, strategy ewc")
    cycles: int = Field(1, ge=0, description="open-world cycles after the tasks: recognise, name, add, train on")
    classes_per_cycle: int = Field(16, ge=1, description="M, classes that the oracle names in a cycle at most")
    examples: int = Field(
        100, ge=0, description="further images of each class named that the oracle gives, besides the unknown set's"
    )
    open_epochs: float = Field(0.7, gt=0, description="passes over the images of all known classes a cycle")
    open_learning_rate: float | None = Field(0.02, gt=0, description="in a cycle; none: as in the tasks")
    bias: Bias = Field("none", description="against the bias between old and new classes after a cycle's training")
    score: Score = Field("max-logit", description="how unknown an image is; msp is Eq. 2")
    threshold: float | None = Field(None, description="lambda_open of Eq. 3; none: calibrated on held-out known images")
    keep_known: float = Field(0.95, gt=0, lt=1, description="share of held-out known images under the threshold")
    calibration_share: float = Field(
        0.0, ge=0, lt=1, description="of each named class's images, not trained on: they calibrate the threshold too"
    )
    neighbours: int = Field(50, ge=1, description="k of the score nearest-neighbour")
    compare_scores: tuple[Score, ...] = Field((), description="further scores whose cycles are tried and reported")
    compare_strategies: tuple[Strategy, ...] = Field(
        (), description="further strategies whose cycles are tried and reported"
    )
    annotator: Literal["oracle", "annotate"] = Field(
        "oracle",
        description="who names unknown images: the world's own labels, or someone at `collective-node annotate`",
    )
    sigma: float | None = Field(None, gt=0, description="threshold of Eq. 5; none: from the first task")
    layers: int | None = Field(
        3, ge=1, le=36, description="k, the inherited layers; none: as many as settled, 3 where none did"
    )
    criterion: Criterion = "gradient-trend"
    copies: Literal["divided", "undivided"] = Field(
        "divided",
        description="gradients of widened channels in Eq. 4: as they are, or over the fraction that a copy is",
    )
    descendant_epochs: float = Field(
        0.0, ge=0, description="passes over the base images for the pseudo-descendant; 0: no second criterion"
    )
    forms: tuple[Form, ...] = Field(("condensed", "paper"), min_length=1)
    condense_epochs: float = Field(5.0, gt=0, description="passes over the known images for the compact network")
    condense_learning_rate: float = Field(0.1, gt=0)
    condense_budget: Budget = Field(
        "0.5M", description="weights of the compact network; own: a stem for top layers as the collective's own"
    )
    condense_pools: tuple[int, ...] | None = Field(
        None,
        max_length=8,
        description="blocks that a max-pool follows, from 1, where a budget is set; none: the stem's four and the last",
    )
    condense_start: Literal["collective", "random"] = Field(
        "random", description="first weights of the condensed form's top layers"
    )
    condense_frozen: bool = Field(
        False, description="whether top layers from the collective, and its classifier, stay as they are"
    )
    condense_known: bool = Field(True, description="whether the condensed form learns named classes besides the base's")
    condense_sampling: Literal["class-balanced", "instance-balanced"] = Field(
        "class-balanced", description="whether every class or every image occurs equally often in condensing"
    )
    condense_stream: float = Field(
        0.0, ge=0, lt=1, description="share of a batch that distils from images of the stream that nobody named"
    )
    condense_classifier: CompactClassifier = Field(
        "linear", description="behind the compact network's features, while it is trained and not frozen"
    )
    condense_dropout: float = Field(0.0, ge=0, lt=1, description="in that classifier, mlp")
    condense_sizes: tuple[SizeName, ...] = Field(
        (),
        max_length=MOST_SIZES,
        description="smaller networks in the condensed one, by their share of its channels; direct has one of each too",
    )
    condense_sizes_distil: float = Field(
        0.5, ge=0, le=1, description="weight of the whole's soft labels in what these learn; the labels have the rest"
    )
    condense_mixup: float | None = Field(None, ge=0, description=_IN_CONDENSING)
    condense_manifold_mixup: float | None = Field(None, ge=0, description=_IN_CONDENSING)
    condense_rotation: float | None = Field(None, ge=0, description=_IN_CONDENSING)
    condense_randaugment: int | None = Field(None, ge=0, le=10, description=_IN_CONDENSING)
    condense_ema: float | None = Field(None, ge=0, lt=1, description=_IN_CONDENSING)
    condense_swa: float | None = Field(None, ge=0, le=1, description=_IN_CONDENSING)
    condense_generations: int = Field(
        0,
        ge=0,
        le=10,
        description="further generations of a compact network, each with new weights and taught by the one before "
        "(born-again networks); all share the epochs",
    )
    distil_logits: float = Field(0.0, ge=0, le=1, description="weight of the collective's soft labels in condensing")
    distil_temperature: float = Field(4.0, gt=0)
    distil_features: float = Field(0.0, ge=0, description="weight of the likeness to the collective's features")
    distil_relations: float = Field(0.0, ge=0, description="weight of the likeness of relations between images")
    direct_epochs: float | None = Field(
        None, gt=0, description="passes of the forms direct and direct-inherited; none: as many batches as condensing"
    )
    fisher_estimator: Estimator = "sampled"
    fisher_samples: int = Field(1024, ge=1)
    blob_dtype: Dtype = Field("float32", description="of a learngene's convolutions as they are sent; int8: by channel")
    privacy_epsilon: float | None = Field(
        None, gt=0, le=100, description="differential privacy: epsilon of all that is released; none: no guarantee"
    )
    privacy_delta_exponent: int = Field(
        6, ge=1, le=30, description="delta is 10 to the minus this; at most 1 / (10 n) for n training images"
    )
    privacy_scope: PrivacyScope = Field(
        "weights-and-fisher",
        description="what the guarantee is about; fisher-given-weights: the Fisher diagonal alone, not the weights",
    )
    privacy_epochs: float = Field(10.0, gt=0, description="passes over the images in private training")
    privacy_batch_size: int = Field(1024, ge=1, description="images to be expected in a step of private training")
    privacy_learning_rate: float = Field(1.0, gt=0)
    privacy_clip: float = Field(1.0, ge=1e-6, le=1e6, description="largest norm of an image's gradient")
    privacy_fisher_clip: float = Field(
        1.0, ge=1e-6, le=1e6, description="largest norm of an image's squared gradient, in a private Fisher diagonal"
    )
    privacy_fisher_share: float = Field(
        0.1, gt=0, lt=1, description="of epsilon, for the Fisher diagonal; training has the rest"
    )

    @field_validator("expansion")
    @classmethod
    def _expansion_can_be_read(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parse(value)
        return value

    @field_validator("base_widths")
    @classmethod
    def _widths_are_channels(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 1:
            raise ValueError("a convolution needs at least one channel")
        return value

    @field_validator("forms")
    @classmethod
    def _each_form_once(cls, value: tuple[Form, ...]) -> tuple[Form, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a form stands twice")
        return value

    @field_validator("condense_sizes")
    @classmethod
    def _each_size_once(cls, value: tuple[SizeName, ...]) -> tuple[SizeName, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a size stands twice")
        return value

    @model_validator(mode="after")
    def _no_annotator_is_asked_twice(self) -> "CollectiveSettings":
        if self.annotator == "annotate" and (self.compare_scores or self.compare_strategies):
            raise ValueError("compare_scores and compare_strategies need annotator = oracle: they ask again and again")
        return self

    @model_validator(mode="after")
    def _balanced_needs_images_of_old_classes(self) -> "CollectiveSettings":
        if self.bias == "balanced" and {self.strategy, *self.compare_strategies} != {"replay"}:
            raise ValueError("bias = balanced needs strategy = replay: ewc and none look at no image of an old class")
        return self

    @model_validator(mode="after")
    def _parts_hold_images(self) -> "CollectiveSettings":
        if self.batch_size < 2 * self.parts:
            raise ValueError(f"batch_size must be at least {2 * self.parts}: two images for each of {self.parts} parts")
        return self

    @model_validator(mode="after")
    def _frozen_layers_are_the_collectives(self) -> "CollectiveSettings":
        if self.condense_frozen and (self.condense_start != "collective" or self.condense_budget != "own"):
            raise ValueError(
                "condense_frozen keeps the collective's own top layers: set condense_start=collective and "
                "condense_budget=own"
            )
        if self.condense_frozen and self.condense_sizes:
            raise ValueError("condense_sizes are trained with all layers: set condense_frozen=false")
        if self.condense_sizes and self.in_condensing.rotation and self.in_condensing.manifold_mixup:
            raise ValueError(
                "condense_sizes learn turned images from the whole network's answers, and mixed maps without them: "
                "set condense_rotation=0 or condense_manifold_mixup=0"
            )
        return self

    @model_validator(mode="after")
    def _second_criterion_has_a_descendant(self) -> "CollectiveSettings":
        if self.criterion == "similarity" and self.descendant_epochs == 0:
            raise ValueError("the criterion similarity needs descendant_epochs above 0")
        return self

    @model_validator(mode="after")
    def _one_mix_and_one_average(self) -> "CollectiveSettings":
        for one in (self, self.in_condensing):
            if one.mixup and one.manifold_mixup:
                raise ValueError("manifold_mixup mixes images too: set mixup or manifold_mixup to 0")
            if one.ema and one.swa:
                raise ValueError("a training ends with one average of its weights: set ema or swa to 0")
        return self

    @model_validator(mode="after")
    def _cosines_know_no_length(self) -> "CollectiveSettings":
        if self.classifier != "cosine":
            return self
        if "ewc" in (self.strategy, *self.compare_strategies):
            raise ValueError("the Fisher diagonal of strategy ewc knows no cosines: set classifier to linear or mlp")
        if self.bias == "weight-alignment":
            raise ValueError("the lengths that bias = weight-alignment aligns do not count with classifier = cosine")
        return self

    @property
    def in_condensing(self) -> "CollectiveSettings":
        """The settings as the training of a compact network has them, with its own regularisers."""
        own = {name: getattr(self, f"condense_{name}") for name in REGULARISERS}
        return self.model_copy(update={name: value for name, value in own.items() if value is not None})

    @property
    def taught_by_itself(self) -> "CollectiveSettings":
        """The settings as a further generation has them, whose teacher is the one before: its soft labels alone."""
        return self.model_copy(
            update={"distil_logits": self.generation_weight, "distil_features": 0.0, "distil_relations": 0.0}
        )

    @property
    def plain(self) -> "CollectiveSettings":
        """The settings without any regulariser."""
        return self.model_copy(update=REGULARISERS)

    @property
    def private_weights(self) -> bool:
        """Whether the weights themselves are to be differentially private."""
        return self.privacy_epsilon is not None and self.privacy_scope == "weights-and-fisher"

    @property
    def budget(self) -> int | None:
        """Most weights of the compact network; None: it has the collective's own top layers."""
        return BUDGETS.get(self.condense_budget)

    @property
    def distils(self) -> bool:
        """Whether condensing learns from the collective's network besides the labels."""
        return self.distil_logits + self.distil_features + self.distil_relations > 0

    @model_validator(mode="after")
    def _private_fisher_diagonals_are_of_the_same_images(self) -> "CollectiveSettings":
        # They are planned together, for one number of images: that of all known classes.
        compact = [form for form in self.forms if form in COMPACT_FORMS]
        fewer = [form for form in compact if form != "condensed" or not self.condense_known]
        if self.privacy_epsilon is not None and not self.private_weights and self.cycles and fewer:
            raise ValueError(
                f"a private Fisher diagonal is planned for the images of all known classes, and {', '.join(fewer)} "
                "learns the base classes alone: leave that form out, or set cycles=0"
            )
        return self

    @model_validator(mode="after")
    def _private_weights_come_from_one_network(self) -> "CollectiveSettings":
        # Each of these would look at the images besides, without noise.
        wanted: dict[str, object] = {
            "forms": ("condensed",),
            "cycles": 0,
            "descendant_epochs": 0.0,
            "condense_sizes": (),
        }
        # DP-SGD has a schedule of its own, and takes no image twice.
        wanted |= {"schedule": "one-cycle", "consolidate_generations": 0, "condense_generations": 0}
        wrong = [name for name, value in wanted.items() if getattr(self, name) != value]
        wrong += ["layers"] if self.layers is None else []
        named = {name: off for name, off in LATER.items() if name.removeprefix("condense_") in REGULARISERS}
        wrong += [name for name, off in named.items() if getattr(self, name) not in (off, 0)]
        if self.private_weights and wrong:
            raise ValueError(
                "private weights are those of one network, trained for the condensed form alone: set forms=condensed, "
                "cycles=0, descendant_epochs=0, no condense_sizes, a number of layers, and all that regularises off "
                f"(here differ: {', '.join(wrong)}), or privacy_scope=fisher-given-weights"
            )
        return self
