"""What an SAE is and how it is trained: one checked value, and sae-lens's own configs made from it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import import_module
from typing import Any, Literal, get_args

from ....protos.errors import FailedPrecondition, InvalidArgument

__all__ = ["ARCHITECTURES", "Architecture", "TrainConfig", "import_sae_lens", "new_sae"]

Architecture = Literal["topk", "batchtopk", "matryoshka", "jumprelu", "gated", "standard"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
Normalisation = Literal["none", "expected_average_only_in", "covariance_whitening"]
NORMALISATIONS: tuple[Normalisation, ...] = get_args(Normalisation)
"""Those that sae-lens folds into the weights at the end, so that the saved SAE takes activations as they are."""
Schedule = Literal["constant", "cosineannealing"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)

_CLASSES: dict[str, str] = {
    "topk": "TopK",
    "batchtopk": "BatchTopK",
    "matryoshka": "MatryoshkaBatchTopK",
    "jumprelu": "JumpReLU",
    "gated": "Gated",
    "standard": "Standard",
}
_WITH_K = ("topk", "batchtopk", "matryoshka")
_WITH_L1 = ("gated", "standard")
_WITH_L0 = ("jumprelu",)
_OWN = {"d_in", "d_sae", "k", "l1_coefficient", "l0_coefficient", "l1_warm_up_steps", "l0_warm_up_steps"} | {
    "aux_loss_coefficient",
    "device",
    "dtype",
    "matryoshka_widths",
    "metadata",
    "normalize_activations",
    "reshape_activations",
}
"""Fields of sae-lens's configs that ours set, or that stay as they are; `options` may give any other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One SAE's training. Checked on construction: raises InvalidArgument. The width it reads is that of the data."""

    architecture: Architecture
    """topk (Gao et al. 2024), batchtopk (Bussmann et al. 2024), matryoshka (over batchtopk; Bussmann et al. 2025),
    jumprelu (Rajamanoharan et al. 2024b), gated (2024a), standard (ReLU and L1)."""
    d_sae: int
    """How many latents."""
    steps: int
    """Optimizer steps, a batch each."""
    batch_size: int
    """Rows a step; as many as the batches bring."""
    k: float | None = None
    """topk, batchtopk, matryoshka: latents active a row; an average over the batch, and so maybe no whole number, in
    the latter two. These are saved with a threshold, sae-lens's running mean over some 1/topk_threshold_lr = 100 steps:
    a run must be several times as long, or raise that option, for the saved SAE to have as many active."""
    l1_coefficient: float | None = None
    """gated, standard: weight of the L1 loss."""
    l0_coefficient: float | None = None
    """jumprelu: weight of the L0 loss."""
    sparsity_warm_up_steps: int = 0
    """gated, standard, jumprelu: steps over which that weight grows from 0."""
    aux_coefficient: float | None = None
    """topk, batchtopk, matryoshka: weight of the loss that revives dead latents; None: 1."""
    matryoshka_widths: tuple[int, ...] | None = None
    """matryoshka: latents of each nested SAE, ascending to d_sae; None: an eighth, a quarter, a half and all."""
    lr: float = 3e-4
    """Adam's learning rate."""
    lr_schedule: Schedule = "constant"
    """Between warm-up and decay: constant, or a cosine down to a tenth of lr."""
    lr_warm_up_steps: int = 0
    lr_decay_steps: int = 0
    """Steps at the end over which the learning rate falls to 0."""
    normalisation: Normalisation = "none"
    """Of what is trained on, and folded into the weights at the end. "expected_average_only_in" brings the mean norm to
    √d_in (Anthropic, April 2024), "covariance_whitening" the covariance to the identity (arXiv 2511.13981)."""
    normalisation_batches: int = 50
    """Batches that it is estimated on, held in memory meanwhile; training sees them too."""
    dead_window: int | None = None
    """Steps without firing after which a latent is dead; None: a fifth of all steps, at most 1000."""
    sparsity_window: int = 2000
    """Steps that sparsity.safetensors is counted over."""
    seed: int = 0
    """Of the initial weights."""
    checkpoints: int = 5
    """How often the state is saved on the way, at equal distances; has no say in the weights."""
    log_every: int | None = None
    """Steps between points of the curves; None: so that there are about 300."""
    device: str = "cpu"
    """torch's name of it. Resuming is exact to the bit on the CPU."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further fields of sae-lens's config class, such as jumprelu_bandwidth or decoder_init_norm. JSON-able."""

    def __post_init__(self) -> None:
        _one_of("architecture", self.architecture, ARCHITECTURES)
        _one_of("normalisation", self.normalisation, NORMALISATIONS)
        _one_of("lr_schedule", self.lr_schedule, SCHEDULES)
        for name in ("d_sae", "steps", "normalisation_batches", "sparsity_window"):
            _whole(name, getattr(self, name), 1)
        _whole("batch_size", self.batch_size, 2)  # one row has no variance to explain
        for name in ("sparsity_warm_up_steps", "lr_warm_up_steps", "lr_decay_steps", "checkpoints", "seed"):
            _whole(name, getattr(self, name), 0)
        for name in ("dead_window", "log_every"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1)
        _number("lr", self.lr, above=0.0)
        self._check_sparsity()
        self._check_widths()
        if self.lr_warm_up_steps + self.lr_decay_steps >= self.steps:
            raise InvalidArgument(
                f"lr_warm_up_steps {self.lr_warm_up_steps} and lr_decay_steps {self.lr_decay_steps} leave nothing of "
                f"{self.steps} steps; together they must be fewer"
            )

    def _check_sparsity(self) -> None:
        """What belongs to an architecture is given for it and for no other."""
        for name, takers in (("k", _WITH_K), ("l1_coefficient", _WITH_L1), ("l0_coefficient", _WITH_L0)):
            value = getattr(self, name)
            if self.architecture in takers and value is None:
                raise InvalidArgument(f"{self.architecture} needs {name}")
            if self.architecture not in takers and value is not None:
                raise InvalidArgument(f"{self.architecture} takes no {name}; it is for {', '.join(takers)}")
            if value is not None:
                _number(name, value, above=0.0)
        if self.k is not None and self.k > self.d_sae:
            raise InvalidArgument(f"k must be in 1 … d_sae = {self.d_sae}, got {self.k}")
        if self.k is not None and (self.k < 1 or (self.architecture == "topk" and self.k != int(self.k))):
            raise InvalidArgument(f"k must be in 1 … {self.d_sae}, and a whole number for topk; got {self.k}")
        if self.aux_coefficient is not None:
            if self.architecture not in _WITH_K:
                raise InvalidArgument(f"{self.architecture} takes no aux_coefficient; it is for {', '.join(_WITH_K)}")
            _number("aux_coefficient", self.aux_coefficient)
        if self.sparsity_warm_up_steps and self.architecture in _WITH_K:
            raise InvalidArgument(f"{self.architecture} has no sparsity loss; leave sparsity_warm_up_steps out")

    def _check_widths(self) -> None:
        if self.matryoshka_widths is not None and self.architecture != "matryoshka":
            raise InvalidArgument(f"{self.architecture} takes no matryoshka_widths")
        widths = self.widths
        if self.architecture == "matryoshka" and (
            len(widths) < 2 or widths[0] < 1 or widths[-1] != self.d_sae or sorted(set(widths)) != list(widths)
        ):
            raise InvalidArgument(
                f"matryoshka_widths must ascend to d_sae = {self.d_sae} in at least two steps, got {list(widths)}"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """matryoshka: latents of each nested SAE."""
        if self.matryoshka_widths is not None:
            return tuple(self.matryoshka_widths)
        return tuple(sorted({self.d_sae // share for share in (8, 4, 2, 1)} - {0}))

    @property
    def window(self) -> int:
        """Steps without firing after which a latent is dead."""
        return self.dead_window or max(1, min(1000, self.steps // 5))

    @property
    def log_interval(self) -> int:
        """Steps between points of the curves."""
        return self.log_every or max(1, self.steps // 300)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` makes the same config of it."""
        found = asdict(self)
        found["matryoshka_widths"] = None if self.matryoshka_widths is None else list(self.matryoshka_widths)
        return {**found, "options": dict(self.options)}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> TrainConfig:
        """Raises InvalidArgument for names that it does not know."""
        unknown = sorted(set(found) - {known.name for known in fields(cls)})
        if unknown:
            raise InvalidArgument(f"a training config has no {', '.join(unknown)}")
        values: dict[str, Any] = dict(found)
        if values.get("matryoshka_widths") is not None:
            values["matryoshka_widths"] = tuple(values["matryoshka_widths"])
        return cls(**values)

    def sae_config(self, d_in: int, metadata: Mapping[str, Any] | None = None) -> Any:
        """sae-lens's config of the SAE itself."""
        _whole("the data's width d_in", d_in, 2)
        lens = import_sae_lens()
        config_class = getattr(lens, f"{_CLASSES[self.architecture]}TrainingSAEConfig")
        allowed = {known.name for known in fields(config_class)} - _OWN
        unknown = sorted(set(self.options) - allowed)
        if unknown:
            raise InvalidArgument(
                f"options {', '.join(unknown)} are not for {self.architecture}; allowed: {', '.join(sorted(allowed))}"
            )
        made = config_class(
            d_in=d_in,
            d_sae=self.d_sae,
            device=self.device,
            normalize_activations=self.normalisation,
            **self._own_options(),
            **self.options,
        )
        for name, value in (metadata or {}).items():
            made.metadata[name] = value
        return made

    def _own_options(self) -> dict[str, Any]:
        if self.architecture in _WITH_K:
            k = self.k if self.architecture != "topk" or self.k is None else int(self.k)
            aux = 1.0 if self.aux_coefficient is None else self.aux_coefficient
            widths = {"matryoshka_widths": list(self.widths)} if self.architecture == "matryoshka" else {}
            return {"k": k, "aux_loss_coefficient": aux, **widths}
        kind = "l0" if self.architecture in _WITH_L0 else "l1"
        coefficient = self.l0_coefficient if kind == "l0" else self.l1_coefficient
        return {f"{kind}_coefficient": coefficient, f"{kind}_warm_up_steps": self.sparsity_warm_up_steps}

    def trainer_config(self) -> Any:
        """sae-lens's config of its trainer. Nothing is sent to Weights & Biases, and our loop saves the checkpoints."""
        import_sae_lens()
        config: Any = import_module("sae_lens.config")
        return config.SAETrainerConfig(
            total_training_samples=self.steps * self.batch_size,
            train_batch_size_samples=self.batch_size,
            lr=self.lr,
            lr_end=self.lr / 10,
            lr_scheduler_name=self.lr_schedule,
            lr_warm_up_steps=self.lr_warm_up_steps,
            lr_decay_steps=self.lr_decay_steps,
            device=self.device,
            dead_feature_window=self.window,
            feature_sampling_window=self.sparsity_window,
            n_checkpoints=0,
            logger=config.LoggingConfig(log_to_wandb=False),
            n_batches_for_norm_estimate=self.normalisation_batches,
        )


def new_sae(config: TrainConfig, d_in: int, metadata: Mapping[str, Any] | None = None) -> Any:
    """sae-lens's training SAE with the initial weights that `config.seed` gives; torch's own generator is left alone.

    Raises InvalidArgument for options that the architecture has not, or a device that this torch cannot use.
    """
    torch: Any = import_module("torch")
    try:
        torch.empty(0, device=config.device)
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0]
        raise InvalidArgument(f"device {config.device!r} cannot be used here ({said}); cpu always can") from None
    made = config.sae_config(d_in, metadata)
    sae_class = getattr(import_sae_lens(), f"{_CLASSES[config.architecture]}TrainingSAE")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        made.device = "cpu"  # the same initial weights on every device
        return sae_class(made).to(config.device)


def import_sae_lens() -> Any:
    """The package, which takes seconds to import; without warnings of what it imports, which its users cannot mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return import_module("sae_lens")
        except ImportError as error:
            raise FailedPrecondition(f"SAEs need sae-lens: pip install 'probewire[sae]' ({error})") from error


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidArgument(f"{name} {value!r}; allowed: {', '.join(allowed)}")


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidArgument(f"{name} must be a whole number of at least {least}, got {value!r}")


def _number(name: str, value: object, above: float | None = None) -> None:
    number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or not (number > above if above is not None else number >= 0):
        bound = "at least 0" if above is None else f"above {above:g}"
        raise InvalidArgument(f"{name} must be a finite number {bound}, got {value!r}")
