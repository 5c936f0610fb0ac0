"""Token shards as windows for training: order, packing, mixtures, loaders."""
