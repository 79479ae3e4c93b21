"""containerd snapshotters: the snapshotter of each handler, and the nydus-snapshotter unit."""
