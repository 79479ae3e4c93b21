"""Labels, startup taints and Events of the Node."""
