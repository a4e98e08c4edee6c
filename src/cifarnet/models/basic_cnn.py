"""BasicCNN: the plain network that the reference compares with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from cifarnet._types import Images, Logits
from cifarnet._validation import check_count, check_counts
from cifarnet.models._modules import flatten

__all__ = ["BasicCNN"]


class BasicCNN(nn.Module):
    """Two 5x5 convolutions and three linear layers, no batch norm, no dropout: 1,007,306 parameters.

    The reference names only a "basic CNN" of 1M parameters. This is the network of PyTorch's tutorial "Training a
    Classifier", with the layers of LeNet-5 (LeCun et al., 1998) and enough channels and hidden units for 1M.

    ============================ ============== ================
    layer                        output         then
    ============================ ============== ================
    conv 5x5, no padding         32 x 28 x 28   ReLU, max-pool 2
    conv 5x5, no padding         64 x 10 x 10   ReLU, max-pool 2
    linear 1,600 -> 512          512            ReLU
    linear 512 -> 256            256            ReLU
    linear 256 -> 10             10             logits
    ============================ ============== ================

    Args:
        num_classes: Number of classes, ``K >= 2``.
        in_channels: Number of channels of an image, ``C``.
        image_size: Side length of an image in pixels, at least 16.
        widths: Output channels of the two convolutions.
        hidden: Output features of the two hidden linear layers.

    Raises:
        SettingError: If a value is outside its range.

    Example:
        >>> import torch
        >>> BasicCNN()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> sum(p.numel() for p in BasicCNN().parameters())
        1007306
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        image_size: int = 32,
        widths: Sequence[int] = (32, 64),
        hidden: Sequence[int] = (512, 256),
    ) -> None:
        super().__init__()
        check_count("num_classes", num_classes, "CIFAR-10 has 10", least=2)
        check_count("in_channels", in_channels, "CIFAR-10 has 3")
        check_count("image_size", image_size, "CIFAR-10 has 32 pixels a side", least=16)
        check_counts("widths", widths, 2, "the default is (32, 64)")
        check_counts("hidden", hidden, 2, "the default is (512, 256)")
        #: Arguments that rebuild this network, stored beside its weights.
        self.arguments = {
            "num_classes": num_classes,
            "in_channels": in_channels,
            "image_size": image_size,
            "widths": tuple(widths),
            "hidden": tuple(hidden),
        }
        pooled = ((image_size - 4) // 2 - 4) // 2  # each convolution removes 4 pixels, each pooling halves the side
        self.conv1 = nn.Conv2d(in_channels, widths[0], kernel_size=5)
        self.conv2 = nn.Conv2d(widths[0], widths[1], kernel_size=5)
        self.fc1 = nn.Linear(widths[1] * pooled * pooled, hidden[0])
        self.fc2 = nn.Linear(hidden[0], hidden[1])
        self.fc3 = nn.Linear(hidden[1], num_classes)

    def forward(self, images: Images) -> Logits:
        """Compute the logits.

        Args:
            images: Normalised images, shape ``(N, C, image_size, image_size)``.

        Returns:
            Logits, shape ``(N, K)``.
        """
        x: Tensor = F.max_pool2d(F.relu(self.conv1(images)), 2)  # (N, 32, 14, 14)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # (N, 64, 5, 5)
        x = F.relu(self.fc1(flatten(x)))  # (N, 512)
        x = F.relu(self.fc2(x))  # (N, 256)
        logits: Logits = self.fc3(x)
        return logits
