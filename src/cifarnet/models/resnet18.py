"""ResNet18: ResNet-18 in the variant for small images."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cifarnet._types import Images, Logits
from cifarnet._validation import check_count

__all__ = ["ResNet18"]


class ResNet18(nn.Module):
    """Eight residual blocks of two 3x3 convolutions: 11,173,962 parameters with ten classes.

    He et al., 2016, arXiv:1512.03385, table 1 (18 layers). That network takes images of 224 pixels. It starts with a
    7x7 convolution of stride 2 and a 3x3 max-pool, which would reduce an image of CIFAR-10 to 8x8 pixels. This is the
    usual CIFAR variant, which starts with a 3x3 convolution of stride 1.

    ============================ ==============
    layer                        output
    ============================ ==============
    conv 3x3, batch norm, ReLU   64 x 32 x 32
    two blocks                   64 x 32 x 32
    two blocks                   128 x 16 x 16
    two blocks                   256 x 8 x 8
    two blocks                   512 x 4 x 4
    mean over pixels             512
    linear                       10
    ============================ ==============

    Args:
        num_classes: Number of classes, ``K >= 2``.
        in_channels: Number of channels of an image, ``C``.

    Raises:
        SettingError: If a value is outside its range.

    Example:
        >>> import torch
        >>> ResNet18()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> sum(p.numel() for p in ResNet18().parameters())
        11173962
    """

    def __init__(self, num_classes: int = 10, *, in_channels: int = 3) -> None:
        super().__init__()
        check_count("num_classes", num_classes, "CIFAR-10 has 10", least=2)
        check_count("in_channels", in_channels, "CIFAR-10 has 3")
        #: Arguments that rebuild this network, stored beside its weights.
        self.arguments = {"num_classes": num_classes, "in_channels": in_channels}
        self.conv = _conv(in_channels, 64, kernel_size=3)
        self.norm = nn.BatchNorm2d(64)
        self.stage1 = nn.Sequential(ResidualBlock(64, 64), ResidualBlock(64, 64))
        self.stage2 = nn.Sequential(ResidualBlock(64, 128, stride=2), ResidualBlock(128, 128))
        self.stage3 = nn.Sequential(ResidualBlock(128, 256, stride=2), ResidualBlock(256, 256))
        self.stage4 = nn.Sequential(ResidualBlock(256, 512, stride=2), ResidualBlock(512, 512))
        self.fc = nn.Linear(512, num_classes)

    def forward(self, images: Images) -> Logits:
        """Compute the logits.

        Args:
            images: Normalised images, shape ``(N, C, H, W)``, of any size.

        Returns:
            Logits, shape ``(N, K)``.
        """
        x: Tensor = F.relu(self.norm(self.conv(images)))  # (N, 64, 32, 32)
        x = self.stage1(x)  # (N, 64, 32, 32)
        x = self.stage2(x)  # (N, 128, 16, 16)
        x = self.stage3(x)  # (N, 256, 8, 8)
        x = self.stage4(x)  # (N, 512, 4, 4)
        # Not adaptive_avg_pool2d: its backward pass on CUDA is not deterministic.
        logits: Logits = self.fc(x.mean(dim=(2, 3)))
        return logits


class ResidualBlock(nn.Module):
    """Residual block, ``ReLU(convolutions(x) + shortcut(x))``.

    The shortcut is ``x`` itself. If the shape changes, it is a 1x1 convolution with batch norm (option B of He et al.,
    2016, section 3.3).

    Args:
        in_channels: Number of channels of the input.
        out_channels: Number of channels of the output.
        stride: Stride of the first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, out_channels, kernel_size=3, stride=stride)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv(out_channels, out_channels, kernel_size=3)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.append(_conv(in_channels, out_channels, kernel_size=1, stride=stride))
            self.shortcut.append(nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H / stride, W / stride)``, rounded up."""
        shortcut = self.shortcut(x)
        x = F.relu(self.norm1(self.conv1(x)))
        x = self.norm2(self.conv2(x))
        return F.relu(x + shortcut)


def _conv(in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """Build a padded convolution without bias, because a batch norm follows."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
    # As in the paper: He et al., 2015, arXiv:1502.01852. fan_out keeps the variance of the gradients.
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
