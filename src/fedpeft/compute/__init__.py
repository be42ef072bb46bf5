"""Models, losses and gradients, for one client or a stack of them."""
