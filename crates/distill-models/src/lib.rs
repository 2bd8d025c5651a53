//! Model architectures in Burn, their weights, and fake quantisation
