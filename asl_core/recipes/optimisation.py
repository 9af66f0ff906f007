"""Hyperparameters of one training run, shared by pre-training and transfer."""

from dataclasses import dataclass
from typing import ClassVar, Literal


def require_share(name: str, value: float) -> None:
    """Raise a ValueError that names the field unless the value is in (0, 1]."""
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be in (0, 1], got {value}")


def require_rates(recipe: object, *names: str) -> None:
    """Raise a ValueError that names the first of these fields that is not in [0, 1)."""
    for name in names:
        if not 0 <= getattr(recipe, name) < 1:
            raise ValueError(f"{name} must be in [0, 1), got {getattr(recipe, name)}")


def require_at_least(recipe: object, least: float, *names: str) -> None:
    """Raise a ValueError that names the first of these fields that is smaller; None is fine."""
    for name in names:
        value = getattr(recipe, name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def require_positive(recipe: object, *names: str) -> None:
    """Raise a ValueError that names the first of these fields that is not above 0; None is fine."""
    for name in names:
        value = getattr(recipe, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How a model is trained; each protocol overrides the defaults with its own."""

    may_be_fp16: ClassVar[bool] = False
    """Whether its losses and what it calls are known to work in float16."""

    seed: int = 0
    epochs: int = 100
    batch_size: int = 1024
    """Global batch: over all processes and accumulation steps."""
    optimizer: Literal["adamw", "lars"] = "adamw"
    lr: float | None = None
    """Learning rate as used; when absent, blr * batch_size / 256 (MAE's rule)."""
    blr: float = 1.5e-4
    """Learning rate per 256 images."""
    min_lr: float = 0.0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = 0.9
    """LARS only."""
    layer_decay: float | None = None
    """Factor by which the rate shrinks per layer below the head; absent: none."""
    warmup_epochs: float = 0.0
    """Linear warm-up from 0; evaluated per step."""
    schedule: Literal["cosine", "linear", "step", "dino"] = "cosine"
    """After the warm-up: half a cosine, or a line, to min_lr; or a tenth at 8/9 and 26/27 of the
    way (ViTDet's two drops); or DINO's table, a cosine whose warm-up ends a step earlier."""
    weight_decay_end: float | None = None
    """Weight decay of the last step, half a cosine from weight_decay; absent: constant."""
    clip_grad: float | None = None
    """Largest norm of the gradient; absent: no clipping."""
    clip_mode: Literal["global", "per_tensor"] = "global"
    """Which norm: of all gradients together, or of each tensor separately (DINO, iBOT)."""
    precision: Literal["bf16", "fp32", "tf32", "fp16"] = "bf16"
    """bf16: autocast for the network, losses in float32. A CPU with bfloat16 instructions takes two
    thirds of fp32's time; one without emulates them, many times slower than fp32. fp16, in
    pre-training: the same with float16, the loss scaled and steps whose gradients overflow skipped,
    as MAE's code does it. tf32: fp32 whose products a GPU of 2020 or later computes from factors of
    ten bits, several times faster; fp32 itself where there is no such GPU."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "epochs", "batch_size")
        require_at_least(self, 0, "min_lr", "weight_decay", "weight_decay_end", "warmup_epochs")
        require_positive(self, "lr", "blr", "clip_grad")
        require_rates(self, "momentum")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), got {list(self.betas)}")
        if self.precision == "fp16" and not self.may_be_fp16:
            raise ValueError(
                "precision fp16 is for pre-training of mae and asl; use bf16, tf32 or fp32"
            )
        if self.layer_decay is not None:
            require_share("layer_decay", self.layer_decay)
        if self.clip_grad is None and self.clip_mode != "global":
            raise ValueError("clip_mode has no effect without clip_grad; remove it")
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} exceeds epochs {self.epochs}; "
                "shorten the warm-up"
            )

    @property
    def peak_lr(self) -> float:
        """Learning rate after the warm-up: lr, or blr * batch_size / 256."""
        return self.lr if self.lr is not None else self.blr * self.batch_size / 256


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Where a stage runs. Not part of a result's identity: it changes rounding at most."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_workers: int = 0
    """Loader processes."""
    threads: int | None = None
    """Compute threads of this process; absent: one on CPUs, so that sums are rounded alike on all
    machines; beside a GPU the cores that loader workers leave."""
    micro_batch_size: int | None = None
    """Samples per forward pass and process; absent: the whole share of the global batch."""
    checkpoint_minutes: float = 10.0
    log_every_steps: int = 10
    compile: bool = False
    """torch.compile for the network: 1.4 times as fast on a GPU. Off by default: it wants a C
    compiler on every node and a minute of every start. `asl-pipe rehearse` shows what it brings."""
    recompute_activations: bool = False
    """Keep of attention and MLPs their inputs alone, and compute what is inside again for the
    gradients: a quarter more time for a fraction of the memory, for ViT-L and ViT-H. Same bits."""
    cuda_graphs: bool = False
    """Replay the compiled network as CUDA graphs on a GPU: for small networks, which the CPU cannot
    launch fast enough. One process, no micro-batches; no effect on a CPU."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "threads", "micro_batch_size", "log_every_steps")
        require_at_least(self, 0, "num_workers", "checkpoint_minutes")
        if self.cuda_graphs and not self.compile:
            raise ValueError("cuda_graphs replays compiled code; set compile: true")
