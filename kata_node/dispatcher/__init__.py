"""Runs one Job on each of a cluster's nodes: what stands between a Helm hook and the nodes.

An API client and nothing else: it knows Nodes, Jobs and Pods, and nothing of what the Jobs do on the
host. Its image therefore needs none of what the host's side needs.
"""
