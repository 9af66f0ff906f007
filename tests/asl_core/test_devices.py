"""What a run computes with: attention under bf16, memory that is kept, compiled code."""

import resource
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from asl_core.engine.compiling import compile_network
from asl_core.engine.devices import autocast
from asl_core.engine.memory import keep_freed_memory
from asl_core.errors import InputError
from asl_core.recipes.optimisation import Resources

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GRAPHS = Resources(compile=True, cuda_graphs=True)


class Names(TorchDispatchMode):
    """Notes what is computed with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.name())
        return func(*args, **(kwargs or {}))


def attend(precision: str) -> tuple[torch.Tensor, set[str]]:
    """Return the gradient of one attention, and the names of the kernels."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 3, 5, 8, generator=generator, requires_grad=True)
    weight = torch.randn(8, 8, generator=generator)
    with Names() as names:
        with autocast(CPU, precision):
            queries = tokens @ weight
            mixed = F.scaled_dot_product_attention(queries, queries, queries)
        mixed.float().square().sum().backward()
    assert tokens.grad is not None
    return tokens.grad, names.seen


def test_attention_under_bf16_goes_around_the_slow_kernel_of_cpus() -> None:
    whole, whole_names = attend("fp32")
    halved, names = attend("bf16")
    assert any("flash_attention_for_cpu" in name for name in whole_names)
    assert not any("flash_attention_for_cpu" in name for name in names)
    assert halved.dtype == torch.float32
    assert (halved - whole).norm() < 0.02 * whole.norm()
    assert not torch.equal(halved, whole)


def test_memory_that_was_freed_is_not_asked_for_again() -> None:
    keep_freed_memory()

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            torch.zeros(2**21)  # 8 MiB, 2048 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert faults() < 2048


@pytest.mark.parametrize(
    ("resources", "device", "wanted"),
    [
        (Resources(), CPU, []),
        (Resources(), GPU, []),
        (Resources(compile=True), GPU, [None]),
        (GRAPHS, GPU, ["reduce-overhead"]),
        (GRAPHS, CPU, [None]),
    ],
)
def test_what_is_compiled_and_how(
    resources: Resources, device: torch.device, wanted: list[str | None]
) -> None:
    class Noted(nn.Module):
        def compile(self, *args: Any, **kwargs: Any) -> None:
            modes.append(kwargs["mode"])

    modes: list[str | None] = []
    compile_network(Noted(), resources, device, 8)
    assert modes == wanted


@pytest.mark.parametrize("micro", [None, 8, 9])
def test_graphs_take_a_step_in_one_pass(micro: int | None) -> None:
    whole = Resources(compile=True, cuda_graphs=True, micro_batch_size=micro)
    compile_network(nn.Identity(), whole, GPU, 8)
    parts = Resources(compile=True, cuda_graphs=True, micro_batch_size=4)
    with pytest.raises(InputError, match="micro_batch_size 4 splits its 8 images; remove"):
        compile_network(nn.Identity(), parts, GPU, 8)
    compile_network(nn.Identity(), parts, CPU, 8)


def test_graphs_without_compiled_code_are_refused() -> None:
    with pytest.raises(ValueError, match="set compile: true"):
        Resources(cuda_graphs=True)
