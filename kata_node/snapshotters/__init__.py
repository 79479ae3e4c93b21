"""containerd snapshotters: which handler uses which, and the nydus-snapshotter unit."""
