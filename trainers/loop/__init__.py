"""What all training runs share: Lightning modules, optimiser, loss, callbacks, work folders."""
