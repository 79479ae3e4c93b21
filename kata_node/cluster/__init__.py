"""What the installation tells the cluster about its Node: labels, taints, Events."""
