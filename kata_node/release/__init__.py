"""The state of all nodes and releases, as a user of the cluster sees it: status and bundle."""
