"""FastCNN: the network of the speed records, a whitening layer and three groups of convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifarnet._types import Images, Logits
from cifarnet._validation import check_count, check_counts
from cifarnet.errors import DataError, SettingError
from cifarnet.models.whitening import whitening_filters

__all__ = ["FastCNN"]


class FastCNN(nn.Module):
    """Seven convolutions that learn CIFAR-10 in eight epochs: 1,972,792 parameters, 1,971,352 of them trainable.

    The architecture of airbench94 (Jordan, 2024, arXiv:2404.00498), which is based on hlb-CIFAR10 and the ResNet-9 of
    Page, 2019 ("How to train your ResNet"). With ``widths=(128, 384, 512)`` and ``convs_per_group=3`` it is the
    architecture of airbench96. Four unusual choices let it learn in fewer steps:

    * The first convolution is fixed. It whitens patches of 2x2 pixels. Call `fit_whitening` with training images
      before training.
    * A convolution starts as the identity on its first channels (Dirac; Zagoruyko and Komodakis, 2017,
      arXiv:1706.00388). The other channels have torch's initial weights.
    * Batch norm follows the pooling, and its scale stays 1.
    * The logits are divided by the width of the head, whose weights start with standard deviation 1.

    ================================================== =============
    layer                                              output
    ================================================== =============
    whitening conv 2x2, no padding; GELU               24 x 31 x 31
    conv, max-pool 2, norm, GELU, conv, norm, GELU     64 x 15 x 15
    conv, max-pool 2, norm, GELU, conv, norm, GELU     256 x 7 x 7
    conv, max-pool 2, norm, GELU, conv, norm, GELU     256 x 3 x 3
    max over pixels                                    256
    linear without bias, divided by 256                10
    ================================================== =============

    Args:
        num_classes: Number of classes, ``K >= 2``.
        in_channels: Number of channels of an image, ``C``.
        widths: Output channels of the three groups.
        convs_per_group: Number of convolutions per group, 2 or 3. With 3, a shortcut (He et al., 2016,
            arXiv:1512.03385) goes around the last two.

    Raises:
        SettingError: If a value is outside its range.

    Example:
        >>> model = FastCNN()
        >>> model.fit_whitening(torch.randn(8, 3, 32, 32))  # in a real run: normalised training images
        >>> model(torch.zeros(2, 3, 32, 32)).shape, model(torch.zeros(2, 3, 24, 24)).shape
        (torch.Size([2, 10]), torch.Size([2, 10]))
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 256, 256),
        convs_per_group: int = 2,
    ) -> None:
        super().__init__()
        check_count("num_classes", num_classes, "CIFAR-10 has 10", least=2)
        check_count("in_channels", in_channels, "CIFAR-10 has 3")
        check_counts("widths", widths, 3, "the default is (64, 256, 256)")
        if convs_per_group not in (2, 3):
            raise SettingError(f"convs_per_group must be 2 or 3, got {convs_per_group!r}; 2 is the default")
        #: Arguments that rebuild this network, stored beside its weights.
        self.arguments = {
            "num_classes": num_classes,
            "in_channels": in_channels,
            "widths": tuple(widths),
            "convs_per_group": convs_per_group,
        }
        components = 4 * in_channels  # values per patch of 2x2 pixels
        self.whitening = nn.Conv2d(in_channels, 2 * components, kernel_size=2)
        self.whitening.weight.requires_grad_(False)
        self.group1 = ConvGroup(2 * components, widths[0], num_convs=convs_per_group)
        self.group2 = ConvGroup(widths[0], widths[1], num_convs=convs_per_group)
        self.group3 = ConvGroup(widths[1], widths[2], num_convs=convs_per_group)
        self.head = nn.Linear(widths[2], num_classes, bias=False)
        with torch.no_grad():
            self._set_whitening(torch.eye(components).view(-1, in_channels, 2, 2))
            self.head.weight /= self.head.weight.std()

    def fit_whitening(self, images: Images) -> None:
        """Compute the filters of the first convolution. Before this call, they copy the pixels of a patch.

        Args:
            images: Normalised training images, shape ``(N, C, H, W)``. 5,000 are enough.

        Raises:
            DataError: If the images are not floating, contain NaN or infinity, or have another number of channels.
        """
        channels = self.whitening.in_channels
        if images.ndim == 4 and images.shape[1] != channels:
            raise DataError(
                f"the images have {images.shape[1]} channels, the network takes {channels}; pass training images, or "
                "build the network with in_channels="
            )
        self._set_whitening(whitening_filters(images))

    @torch.no_grad()
    def _set_whitening(self, filters: Tensor) -> None:
        """Set the filters and their negatives, because GELU suppresses negative outputs."""
        self.whitening.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, images: Images) -> Logits:
        """Compute the logits.

        Args:
            images: Normalised images, shape ``(N, C, H, W)``, at least 9 pixels a side.

        Returns:
            Logits, shape ``(N, K)``.
        """
        x: Tensor = F.gelu(self.whitening(images))  # (N, 24, 31, 31)
        x = self.group1(x)  # (N, 64, 15, 15)
        x = self.group2(x)  # (N, 256, 7, 7)
        x = self.group3(x)  # (N, 256, 3, 3)
        # Not adaptive_max_pool2d: its backward pass on CUDA is not deterministic.
        x = x.amax(dim=(2, 3))  # (N, 256)
        logits: Logits = self.head(x) / self.head.in_features
        return logits


class ConvGroup(nn.Module):
    """Two or three 3x3 convolutions with a 2x2 max-pool after the first.

    Args:
        in_channels: Number of channels of the input.
        out_channels: Number of channels of the output.
        num_convs: Number of convolutions: 2, or 3 with a shortcut around the last two.
    """

    def __init__(self, in_channels: int, out_channels: int, *, num_convs: int = 2) -> None:
        super().__init__()
        self.conv1 = _dirac_conv(in_channels, out_channels)
        self.norm1 = _batch_norm(out_channels)
        self.conv2 = _dirac_conv(out_channels, out_channels)
        self.norm2 = _batch_norm(out_channels)
        self.num_convs = num_convs
        if num_convs == 3:
            self.conv3 = _dirac_conv(out_channels, out_channels)
            self.norm3 = _batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H / 2, W / 2)``, rounded down."""
        pooled = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        x = F.gelu(self.norm2(self.conv2(pooled)))
        if self.num_convs == 2:
            return x
        return F.gelu(pooled + self.norm3(self.conv3(x)))


def _dirac_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Build a padded 3x3 convolution that starts as the identity on its first channels."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
    with torch.no_grad():
        # Not nn.init.dirac_, which loops over the channels.
        first = conv.weight[:in_channels].zero_()
        first[:, :, 1, 1].fill_diagonal_(1)
    return conv


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    """Build a batch norm with a fixed scale of 1 and fast running statistics, because a run has only 200 steps."""
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)  # as in airbench94
    norm.weight.requires_grad_(False)
    return norm
