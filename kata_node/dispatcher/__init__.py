"""Run one node Job on each selected Node of a cluster.

The dispatcher is only a client of the API server. It knows Nodes, Jobs and Pods, and does not know what
the Jobs do on a node. Its image therefore contains nothing of the node-side code. Suggested reading order:

- ``config``: the configuration file. ``run``: from the configuration to the result.
- ``desired_state``: whether this run may change nodes at all. ``installed``: whether it is for the
  installation that the nodes have.
- ``nodes``: which Nodes are selected and eligible. ``eligibility``: the result of the other Nodes.
- ``dispatch``: follows every node until it has a result. ``node_jobs``: creates the Job of a node, or adopts
  or waits for an existing one, as ``adoption`` decides. ``rollout``: the order of the nodes and when the
  rollout stops. ``competing_dispatchers``: stops other dispatchers before a cleanup.
- ``template``: the manifest of a node Job. ``failures``: why a Job failed or is stuck. ``stuck_pods``: checks
  running Jobs for that. ``progress``: the log lines, the final table and the JSON document. ``events``:
  Events on Nodes.
- ``api``: requests and retries. On top of it ``jobs`` (requests for Jobs and Pods), ``job_watch`` (list and
  watch) and ``kubernetes_objects`` (the fields that are decoded). ``shutdown``: SIGTERM and SIGINT.
"""
