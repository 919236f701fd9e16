"""What does size buy? The base of pretrain_exposure in three shapes: one vocabulary, the same documents and batches.

    python -m ghost_jax.sweep --config=configs/sweeps/size.py:mini          # or :nano

The preset decides all but the shape and the rate, which falls as the width grows. Compared are the validation loss, of
one vocabulary, and the recall of facts that were stated 10 to 1,000 times.
"""

from ghost_jax.sweeps.grid import Setting, Sweep, at_preset

SHAPES = {  # layers, width, heads, SwiGLU hidden, peak rate
    "nano": (4, 128, 4, 352, 3e-3),
    "mini": (6, 256, 4, 704, 2e-3),
    "larger": (8, 384, 6, 1056, 1.5e-3),
}
KEYS = ("model.layers", "model.width", "model.heads", "model.mlp_dim", "optim.peak_lr")


def get_sweep(preset=""):
    spec = at_preset("configs/pretrain_exposure.py", preset)
    settings = [Setting(name, spec, dict(zip(KEYS, shape, strict=True))) for name, shape in SHAPES.items()]
    return Sweep(settings, seeds=(0,), metrics=("val_loss",))
