"""Settings that many methods have, described once. Their defaults stay with each method."""

from __future__ import annotations

from typing import Annotated, Literal

from unlearnlab.optimizers import Optimizer, Schedule
from unlearnlab.spec import Setting
from unlearnlab.stack import BatchNormPolicy

AugmentPolicy = Literal["train", "none"]
LearningRate = Annotated[float, Setting("learning rate", symbol="η", ge=0)]
Epochs = Annotated[int, Setting("passes over the images trained on", symbol="E", ge=1)]
BatchSize = Annotated[int, Setting("examples per step", symbol="B", ge=1)]
Update = Annotated[Optimizer, Setting("update rule", kind="optimizer")]
Augment = Annotated[AugmentPolicy, Setting("random changes of the training images: those of the original's recipe, or none")]
Course = Annotated[Schedule, Setting("course of the learning rate", kind="schedule")]
BatchNorm = Annotated[BatchNormPolicy, Setting("BatchNorm: batch statistics (train), running averages (frozen), or the whole net in eval mode (eval_all)")]
