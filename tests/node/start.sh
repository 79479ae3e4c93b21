#!/bin/sh
# Start a node; run in a mount and pid namespace of its own, with which all that is made here goes away.
#
#   start.sh TREE SCRATCH CGROUP NSPAWN-OPTION...
#
# TREE is only read. SCRATCH holds what the node changes. CGROUP is a control group to make and
# live in, or empty where the machine's systemd has already made one.
set -eu
tree=$1 scratch=$2 cgroup=$3
shift 3

# systemd-nspawn leaves locks and directories here when it is killed.
mkdir -p /run/systemd/nspawn
mount -t tmpfs tmpfs /run/systemd/nspawn

# An overlay can hold neither another overlay's changes nor containerd's overlay snapshots.
if [ "$(stat -f -c %T "$scratch")" = overlayfs ]; then
  mount -t tmpfs tmpfs "$scratch"
fi
mkdir "$scratch/root" "$scratch/changes" "$scratch/work" "$scratch/containerd"
# Directories of the tree can be renamed, as on a real disk. Nothing here has to survive a power cut.
options="volatile,redirect_dir=on,lowerdir=$tree,upperdir=$scratch/changes,workdir=$scratch/work"
mount -t overlay overlay -o "$options" "$scratch/root" 2>/dev/null ||
  cp -a --reflink=auto "$tree/." "$scratch/root"

# Two nodes in one control group would each take the other's services for their own.
if [ -n "$cgroup" ]; then
  mkdir "$cgroup"
  echo $$ >"$cgroup/cgroup.procs"
fi

# Without this variable systemd 258 and later refuse to start on a machine with the legacy hierarchy.
export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
# For containers: runc gives each a keyring, and its rules for devices as a program for the kernel.
exec systemd-nspawn --quiet --boot --directory="$scratch/root" --bind="$scratch/containerd:/var/lib/containerd" \
  --settings=no --register=no --keep-unit --private-network --link-journal=no --resolv-conf=off --timezone=off \
  --system-call-filter="@keyring bpf" --console=read-only "$@"
