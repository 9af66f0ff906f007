"""The gated MLP of a block, SwiGLU."""

import torch.nn.functional as F
from torch import Tensor, nn


class GatedMlp(nn.Module):
    """fc2(silu(a) * b), where a and b are the halves of fc1(x).

    Source: DINOv2, `swiglu_ffn.py`; Shazeer, GLU Variants Improve Transformer, Eq. 6. Names are
    those of timm's `GluMlp`: `fc1` is DINOv2's `w12`, `fc2` its `w3`.

    Args:
        in_features: D.
        hidden_features: Width behind the gate, H; `fc1` is twice as wide.

    Shape:
        - x: (..., D). Output: (..., D).
    """

    def __init__(self, in_features: int, hidden_features: int, **_: object) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, 2 * hidden_features)
        self.fc2 = nn.Linear(hidden_features, in_features)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)  # (..., H) each
        return self.fc2(F.silu(gate) * value)
