"""Runs one Job on each of a cluster's nodes: what stands between a Helm hook and the nodes.

An API client and nothing else: it knows Nodes, Jobs and Pods, and nothing of what the Jobs do on the
host. Its image therefore needs none of what the host's side needs. To be read in this order:

- ``config``, the file it is given, and ``run``, the way from that to the result;
- ``nodes``, which Nodes are meant and can be worked on; ``unfit``, how the others end;
- ``dispatch``, which sees every node to its end; ``placement``, which gets it its Job past what is there
  already, by what ``adoption`` says of that; ``rollout``, who is next and when it stops; ``rivals``;
- ``template``, the manifest of a Job; ``failures``, why one failed or hangs, and ``hangs``, which asks that
  of those that run; ``telling``, what is printed; ``events``, what the cluster is told;
- ``api``, requests and their retries, and on it ``jobs``, ``feed`` (the watch) and ``objects`` (the fields
  that are read); ``stop``, SIGTERM.
"""
