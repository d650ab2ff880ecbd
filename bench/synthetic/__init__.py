"""Checkpoints of random weights in the true shapes of GLM-4.x, for measuring speed; see ../make_checkpoint.py."""
