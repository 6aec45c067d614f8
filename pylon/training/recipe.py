"""What makes training from few images better: options of train.py that are off by default.

How the optimizer treats the layers, an offset for what is known without looking, and a share of the
patients. Poolings are in pylon/model.py, augmentations in pylon/data/transforms.py.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pylon.baselines import Baseline
from pylon.data.columns import make_encoder
from pylon.encoders import STRIDES
from pylon.model import STRIDE, Pylon
from pylon.system.errors import UserError

Network = Pylon | Baseline


def share_of_patients(images: pd.DataFrame, share: float) -> pd.DataFrame:
    """Keep a share of the training patients, at random; a smaller share is part of a larger one.

    Args:
        images: of all splits; those of other splits stay.
        share: above 0, at most 1.
    """
    train = images["split"] == "train"
    patients = np.sort(images.loc[train, "patient_id"].unique())
    order = np.random.default_rng(0).permutation(len(patients))
    chosen = patients[order[: math.ceil(share * len(patients))]]
    return images[~train | images["patient_id"].isin(chosen)]


def require_positives(train: pd.DataFrame, class_names: Sequence[str], share: float) -> None:
    """Raise a UserError if a share of the training images has no finding at all."""
    if share < 1 and not (train[list(class_names)] == 1).any(axis=None):
        raise UserError(
            f"--train-share {share}: none of these {len(train)} training images has a finding; "
            "choose a larger share"
        )


class Offsets:
    """A logistic regression of the labels on columns, added to the logits in training only.

    The network is then not paid for what a column says already, such as that an image was taken
    lying down. The offsets of the training images average 0.

    Args:
        columns: from `read_columns`, for all images.
        train: table of the training images.
        class_names: its label columns.

    Raises:
        UserError: a column is the same in all training images.
    """

    def __init__(self, columns: pd.DataFrame, train: pd.DataFrame, class_names: Sequence[str]):
        from sklearn.linear_model import LogisticRegression

        same = [name for name in columns if columns.loc[train.index, name].nunique() < 2]
        if same:
            raise UserError(
                f"--adjust-for {same[0]}: this column is the same in all training images, so it "
                "says nothing; leave it out"
            )
        self.columns = columns
        self.encoder = make_encoder(columns)
        inputs = self.encoder.fit_transform(columns.loc[train.index])  # (N, K)
        self.mean = inputs.mean(axis=0)
        self.weights = np.zeros((inputs.shape[1], len(class_names)))
        for c, name in enumerate(class_names):
            labels = train[name].to_numpy(float)
            known = np.isfinite(labels)
            if len(np.unique(labels[known])) == 2:
                fit = LogisticRegression(max_iter=1000).fit(inputs[known], labels[known])
                self.weights[:, c] = fit.coef_[0]

    def of(self, images: pd.DataFrame) -> np.ndarray:
        """The offsets of the rows of a table: (N, C) float32."""
        inputs = self.encoder.transform(self.columns.loc[images.index])
        return ((inputs - self.mean) @ self.weights).astype(np.float32)

    def weights_by_column(self, class_names: Sequence[str]) -> dict[str, dict[str, float]]:
        """The weights for training_json: class -> column -> log odds ratio."""
        names = self.encoder.get_feature_names_out()
        table = pd.DataFrame(self.weights, names, list(class_names))
        return table.round(4).to_dict()


@torch.no_grad()
def start_at_prevalences(net: Network, train: pd.DataFrame, class_names: Sequence[str]) -> None:
    """Set the head's bias so that each class begins at its share of the training images."""
    labels = train[list(class_names)].to_numpy(float)
    known = np.isfinite(labels).sum(axis=0)
    share = (np.nansum(labels, axis=0) + 0.5) / (known + 1)  # never 0 or 1
    logits = torch.tensor(np.log(share / (1 - share)))
    head = [layer for layer in net.segmentation_head.modules() if isinstance(layer, nn.Conv2d)]
    head[-1].bias.copy_(logits)


def freeze_up_to(net: Network, stride: int) -> list[nn.Module]:
    """Freeze the layers of the encoder from which its feature at a stride is computed.

    Args:
        net: on the CPU.
        stride: 4, 8, 16 or 32; 0 freezes nothing.

    Returns:
        The batch norms among them, which must stay in evaluation mode (`keep_frozen`).
    """
    if stride == 0:
        return []
    net.eval()
    features = net.encoder(torch.zeros(1, net.in_channels, STRIDE, STRIDE))
    feature = features[-4:][STRIDES.index(stride)]
    feature.sum().backward()
    frozen = [weight for weight in net.encoder.parameters() if weight.grad is not None]
    net.zero_grad()
    net.train()
    for weight in frozen:
        weight.requires_grad_(False)
    norms = [layer for layer in net.encoder.modules() if isinstance(layer, _BatchNorm)]
    return [norm for norm in norms if norm.weight is not None and not norm.weight.requires_grad]


def keep_frozen(norms: Sequence[nn.Module]) -> None:
    """Keep frozen batch norms from updating their statistics, after `train()` of the network."""
    for norm in norms:
        norm.eval()


def make_optimizer(net: Network, options: Any, device: torch.device) -> Optimizer:
    """Adam or AdamW; the encoder's learning rate is multiplied by --encoder-lr.

    The first group of parameters has the learning rate itself.
    """
    groups = [{"params": list(net.parameters())}]
    if options.encoder_lr != 1:
        encoder = list(net.encoder.parameters())
        others = [
            value for name, value in net.named_parameters() if not name.startswith("encoder.")
        ]
        groups = [{"params": others}, {"params": encoder, "lr": options.lr * options.encoder_lr}]
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[options.optimizer](groups, lr=options.lr, fused=device.type != "mps")


def make_schedule(
    optimizer: Optimizer, options: Any, steps_an_epoch: int
) -> ReduceLROnPlateau | LambdaLR:
    """Plateau, stepped once an epoch, or cosine, stepped at each step of the optimizer."""
    if options.schedule == "plateau":
        return ReduceLROnPlateau(optimizer, factor=options.lr_factor, patience=options.patience)
    steps = options.epochs * steps_an_epoch
    warm_up = min(steps_an_epoch, steps // 10)

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / (warm_up + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    return LambdaLR(optimizer, factor)


def make_average(net: Network, decay: float) -> AveragedModel | None:
    """An exponential moving average of the weights and statistics; None without one (decay 0)."""
    if decay == 0:
        return None
    return AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
