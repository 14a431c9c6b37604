"""ElevEst: the published run, and nano's."""

from pathlib import Path

from diffsplat.images.dinov2 import DinoConfig
from diffsplat.images.elevest import ElevEstConfig
from training.config.common import Cadence, Data, Optim, RunOptions
from training.config.elevest import ElevationConfig

# 62,160 updates: 30 epochs of 265,232 objects, 16 objects of 8 views on each of 8 processes
PUBLISHED = ElevationConfig(
    preset="elevest",
    backbone="sd15",
    data=Data(batch_size=16, views=8, objects=265_232),
    optim=Optim(steps=62_160, lr=1e-4, lr_multipliers=(("backbone", 0.1),), warmup_steps=1000, ema=False),
    cadence=Cadence(log_every=1, evaluate_every=1000, save_every=2000),
    start=Path("dinov2_vitb14_reg4_pretrain.pth"),
    run=RunOptions(out=Path("runs/elevest")),
)
NANO = ElevationConfig(
    preset="nano/elevest",
    backbone="nano",
    data=Data(grammar="rich", objects=3000, validation_objects=24, batch_size=8, views=8, pool_size=16),
    optim=Optim(steps=1500, lr=1e-3, warmup_steps=100),
    network=ElevEstConfig(
        backbone=DinoConfig(image_size=64, patch_size=8, dim=128, num_blocks=4, num_heads=4), input_size=64
    ),
    run=RunOptions(out=Path("runs/nano/elevest")),
)
