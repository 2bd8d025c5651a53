//! Teachers, losses, the optimiser, the loop and its checkpoints
