"""CifarCNN: the network of the reference, two convolutions and two linear layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from cifarnet._types import Images, Logits
from cifarnet._validation import check_count, check_counts
from cifarnet.errors import SettingError
from cifarnet.models._modules import flatten

__all__ = ["CifarCNN"]


class CifarCNN(nn.Module):
    """Two 3x3 convolutions and two linear layers: 6,447,754 parameters with the defaults.

    ReLU and pooling come before batch norm. That order is unusual and kept because the published network has it.

    ============================ ============== ============================
    layer                        output         then
    ============================ ============== ============================
    conv 3x3, no padding         32 x 30 x 30   ReLU, batch norm
    conv 3x3, no padding         64 x 28 x 28   ReLU, max-pool 2, batch norm
    linear 12,544 -> 512         512            ReLU, dropout 0.5
    linear 512 -> 10             10             logits
    ============================ ============== ============================

    Args:
        num_classes: Number of classes, ``K >= 2``.
        in_channels: Number of channels of an image, ``C``.
        image_size: Side length of an image in pixels, at least 6.
        widths: Output channels of the two convolutions.
        hidden: Output features of the first linear layer.
        dropout: Probability in ``[0, 1)`` that a hidden unit is dropped in training.
        batch_norm: Use the two batch norms. Without them, the other layers start from the same weights.

    Raises:
        SettingError: If a value is outside its range.

    Example:
        >>> import torch
        >>> CifarCNN()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> sum(p.numel() for p in CifarCNN().parameters())
        6447754
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        image_size: int = 32,
        widths: Sequence[int] = (32, 64),
        hidden: int = 512,
        dropout: float = 0.5,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        check_count("num_classes", num_classes, "CIFAR-10 has 10", least=2)
        check_count("image_size", image_size, "CIFAR-10 has 32 pixels a side", least=6)
        check_count("in_channels", in_channels, "CIFAR-10 has 3")
        check_count("hidden", hidden, "the reference has 512")
        check_counts("widths", widths, 2, "the reference has (32, 64)")
        if isinstance(dropout, bool) or not 0 <= dropout < 1:
            raise SettingError(f"dropout must be in [0, 1), got {dropout}; the reference has 0.5")
        if not isinstance(batch_norm, bool):
            raise SettingError(f"batch_norm must be True or False, got {batch_norm!r}; the reference has True")
        #: Arguments that rebuild this network, stored beside its weights.
        self.arguments = {
            "num_classes": num_classes,
            "in_channels": in_channels,
            "image_size": image_size,
            "widths": tuple(widths),
            "hidden": hidden,
            "dropout": dropout,
            "batch_norm": batch_norm,
        }
        first, second = widths
        pooled = (image_size - 4) // 2  # each convolution removes 2 pixels, the pooling halves the side
        self.conv1 = nn.Conv2d(in_channels, first, kernel_size=3)
        self.bn1 = nn.BatchNorm2d(first) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(first, second, kernel_size=3)
        self.bn2 = nn.BatchNorm2d(second) if batch_norm else nn.Identity()
        self.fc1 = nn.Linear(second * pooled * pooled, hidden)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, images: Images) -> Logits:
        """Compute the logits.

        Args:
            images: Normalised images, shape ``(N, C, image_size, image_size)``.

        Returns:
            Logits, shape ``(N, K)``.
        """
        x: Tensor = self.bn1(F.relu(self.conv1(images)))  # (N, 32, 30, 30)
        x = self.bn2(F.max_pool2d(F.relu(self.conv2(x)), 2))  # (N, 64, 14, 14)
        x = F.relu(self.fc1(flatten(x)))  # (N, 512)
        logits: Logits = self.fc2(self.dropout(x))
        return logits
