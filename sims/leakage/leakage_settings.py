"""The settings of a leakage measurement: every number, its default and its limits."""

from pydantic import BaseModel, ConfigDict, Field, model_validator


class LeakageSettings(BaseModel):
    """Settings of the attacks on a release.

    Attributes:
        shadows: shadow collectives for each question, an even number.
        candidates: most images whose membership is asked for; half of them members.
        classes: most classes whose presence is asked for; half of them present.
        noise: scales of noise, in standard deviations of each tensor.
        samples: images behind a Fisher diagonal.
        repetitions: draws of those images.
        head_images: most further images of each class on which the attacker fits its head.
        population: most held-out images, beside the candidates, that RMIA compares with.
        rmia_gamma: how much more an image must stand out than one of the population (RMIA's gamma; larger values only
            make scores equal).
        rmia_a: ``p_in = a p_out + 1 - a`` for an attacker whose shadows hold no candidate (RMIA offline; 0.3 is what
            the authors' program takes).
        class_images: most images of each class on which class presence is measured.
        control_shadows: collectives of the positive control, an even number.
        control_candidates: of each class in the positive control, an even number.
        control_epochs: passes of the positive control over its few images.
        compared: training images that are compared with diagonals; at most half of them are behind one.
        resamples: bootstrap samples behind each interval of the release.
        made_up: number of made-up memberships for the result by chance.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    shadows: int = Field(16, ge=4, le=1024, multiple_of=2)
    candidates: int = Field(1000, ge=2, le=100_000)
    seed: int = Field(0, ge=0, lt=2**31)
    classes: int = Field(16, ge=4)
    noise: tuple[float, ...] = (0.1, 1.0)
    samples: tuple[int, ...] = (1, 8, 32, 128, 1024)
    repetitions: int = Field(10, ge=2)
    head_images: int = Field(100, ge=2)
    population: int = Field(1000, ge=1)
    rmia_gamma: float = Field(1.0, ge=1)
    rmia_a: float = Field(0.3, ge=0, le=1)
    class_images: int = Field(25, ge=1)
    control_shadows: int = Field(8, ge=4, multiple_of=2)
    control_candidates: int = Field(10, ge=4, multiple_of=2)
    control_epochs: float = Field(400.0, gt=0)
    compared: int = Field(128, ge=4)
    resamples: int = Field(1000, ge=20)
    made_up: int = Field(40, ge=4)

    @model_validator(mode="after")
    def _scales_are_positive(self) -> "LeakageSettings":
        if any(scale <= 0 for scale in self.noise) or len(set(self.noise)) != len(self.noise):
            raise ValueError("a scale of noise is above 0, and stands once")
        return self
