"""furniture: nano's reconstruction, fine-tuned on real meshes: Debian's sweethome3d-furniture at 64 px.

The records come from ``python -m training data furniture data/furniture --resolution 64 --geometry centre``, and
`python -m benchmarks.furniture` measures what the training gains on objects that it never saw.
"""

from pathlib import Path

from training.config.common import Cadence, Data, Optim, RenderWeights, RunOptions
from training.config.recon import ReconConfig

FURNITURE = Path("data/furniture")
HELD_OUT_IDS = "held_out_ids.txt"  # as `training data furniture` writes it

RECON = ReconConfig(
    preset="furniture/recon",
    backbone="nano",
    data=Data(
        source=str(FURNITURE),
        validation_ids=FURNITURE / HELD_OUT_IDS,
        objects=0,
        validation_objects=24,
        batch_size=3,  # twice the steps of 6 in the same time
        views=8,  # rendering more of them costs little
        first_views=(),
    ),
    optim=Optim(steps=3800, lr=6e-4, warmup_steps=50),
    cadence=Cadence(evaluate_every=250, save_every=250),
    weights=RenderWeights(image=6.0),
    position_weight=10.0,
    colour_weight=1.0,
    alive_weight=0.02,
    start=Path("bundles/nano"),
    run=RunOptions(out=Path("runs/furniture/recon"), threads=1),
)
