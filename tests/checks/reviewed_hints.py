"""The checks and the hints that no test follows, each with the reason.

Who adds a hint writes a case for it in checks/remedies.py, or adds it here.
"""

from __future__ import annotations

from collections.abc import Mapping

REVIEWED_CHECKS: Mapping[str, str] = {
    "systemd": "It needs a real systemd.",
    "unread-config": "It needs a daemon that starts beside the running one; tests/node has one.",
    "user-drop-in": "It is only skipped, and has no hint.",
    "executable": "It needs a mount.",
    "space": "It needs a full file system; tests/pipeline/test_full_disk.py has one.",
    "cpu": "It needs other firmware.",
    "tee-…": "It needs other hardware.",
    "selinux": "It needs a kernel with SELinux.",
    "hardware": "It is only skipped, and has no hint.",
}

REVIEWED: Mapping[str, tuple[str, ...]] = {
    "It asks a person to find a cause: to read a log, or to look for another program.": (
        "run `ctr plugins ls` on the node: the status of {} must be ok",
        ("if a stage or a Kata pod fails, read the audit log; set selinux.type: spc_t for the stages"),
        "correct these files, or restore their previous content",
        "{}; to install in spite of this, run with --ignore-unread-config",
        "restart {} at a time that suits you, and see that it serves; then install",
        "see whether you want this change: the restart by the install makes it effective",
        "run {} --help",
        "start the container runtime; in a container, mount the directory of its socket",
        (
            "remove the CRI plugin from disabled_plugins if it is there; otherwise see the runtime's "
            "log for why the plugin did not load"
        ),
        "see the runtime's log; the runtime accepts connections but does not answer in time",
        "run again if the runtime restarted just now; otherwise see its log",
        "see the runtime's log",
        "run `systemctl list-unit-files` on the node to find its name",
        "restart the unit instead; its unit file has no ExecReload=",
        "run `{}` on the node to see why",
        "run `systemctl status {}` on the node to see why",
        "run `systemctl status {}` and `systemctl list-jobs` on the node",
        ("run again with --log-level debug, and report the traceback: this is a defect of kata-node"),
        "find the program that reverts these changes and stop it, then run again",
        "correct the cause, then run again",
        "correct the cause on this node now, then run the same command again to continue",
        "find the program that changes this path at the same time, then run kata-node again",
        (
            "find out who changed it; restore it from a copy, or move the whole .kata-node directory "
            "away and remove the installation by hand"
        ),
        ("remove these handlers from the file that defines them; `containerd config dump` shows them"),
        "{}; run `{}` on the node",
        "find out what starts this unit, then run kata-node again",
        "name the socket on which {} listens: `kata-node status --cri-socket PATH`",
        "see why it does not become active: `{}`",
        "run `kata-node status` as root",
    ),
    "It needs another image, another machine, or a change of hardware, kernel or firmware.": (
        "enable virtualization in the firmware; if the node is a VM, enable nested virtualization",
        (
            "enable {} in the firmware and the kernel, or select nodes with {} in "
            "shims.<shim>.runtimeClass.nodeSelector"
        ),
        "pull the image, or download the archive, again; if you built the image, build it again",
        ("pull the image again; if you built the image, run `kata-node payload index` again in its build"),
        "remove the symlink, then run again; only the install dir may be a symlink",
        "set --payload to a directory that has exactly one of the two",
        "unpack it with `tar -xf {} -C DIR` into an empty directory, and set --payload to DIR",
        "keep the archives of one release in the directory, or set --payload to one archive",
        (
            "; in a pod, name an image of both kata-node and the payload in nodeImage and set image.volume: "
            "never, because Kubernetes before 1.35 does not mount images"
        ),
        "download the archives of the release for the architecture of this node",
        (
            "use {}, or a later one, or build one image of kata-node and the payload, name it in "
            "nodeImage and set image.volume: never"
        ),
        "install from them without a manifest, or unpack them and index the directory",
        "run `kata-node payload index {}` when you build the image, or pull the image again",
        (
            "run `kata-node payload index {}` when you build the image, as a user who can write to "
            "this directory"
        ),
        "use the payload and the kata-node of one image, or run {}",
        "enable only shims that need one of these components, or use another image",
        "disable the shim {}, or use an image with its components",
        "run {} when you build the image, or pull the image again",
        (
            "use an image that has this component, or remove the snapshotter that needs it from "
            "snapshotter.setup"
        ),
        "disable the shim {}, or use an image that has this component",
        "use an image with the component {}, or remove devkit from the values",
        "do not use this image; pull it again from its publisher",
        "use the kata-node that wrote the receipt, or a newer one",
        "use a kata-node release that supports this runtime, or another node",
        ("install {} on this node, or set containerd.configDir to the directory of its configuration"),
        "install the container runtime again",
    ),
    "It is about the cluster or its API server. The scratch node has none.": (
        "ask the administrator of the cluster for the right to read this, or choose another context",
        "check that `kubectl get nodes` works with the same kubeconfig and context",
        "log in to the cluster again, or choose another context with --context",
        "name the file with --kubeconfig, or set KUBECONFIG",
        "run without --release to see all releases; `helm list --all-namespaces` shows them too",
        "remove it, or name another one with --file",
        "name a new file in a directory that you can write to with --file",
        "run `helm upgrade` after a change of the {}, with its new digest in the values if they have one",
        "restart the pod",
        "set a port, for example --listen :8090",
        ("stop the program that listens there, or set another port here and in the probes of the pod"),
        "set --config or {}CONFIG to the file that the Helm chart renders",
        (
            "set both; in a Pod of a Job they are its labels batch.kubernetes.io/job-name and "
            "batch.kubernetes.io/controller-uid"
        ),
        "run the helm command again",
        "run `helm test` again",
        "run `helm test`; the Helm chart renders this option",
        "check that the ServiceAccount of the dispatcher still exists",
        (
            "give the dispatcher's ServiceAccount these rights: list and patch on nodes; in its own "
            "namespace list on pods, create, get, list, watch, patch and delete on jobs (API group "
            "batch), get and patch on the ConfigMap of the release's state; for Events, create on "
            "events in the namespace default"
        ),
        "to install Kata, set desiredState: present in the values, and apply them",
        (
            "set it to {}; to change it, remove Kata first (desiredState: absent, or `helm uninstall`), "
            "or install a second release"
        ),
        "to remove it from this node, uninstall the release {}",
        "change the quota or the admission rule that forbids this request",
        "correct the Helm values; the chart renders the Job template from them",
        "check the API server, then run the helm command again; running Jobs continue meanwhile",
        (
            "correct the Helm values; the chart renders this file from them. Nothing was changed in "
            "the cluster"
        ),
        "run `kubectl describe node {}` and check whether its kubelet works",
        "find out what deletes Jobs in the namespace {}",
        "check its kubelet, and run the helm command again when the Node names its runtime",
        (
            "correct k8sDistribution, containerRuntime or containerd.* in the values if the Events "
            "show FailedMount; these settings do not match the node then"
        ),
        "run `{}`, and read the log of the node",
        "check that the node can pull this image, and check imagePullSecrets in the values",
        "run `kubectl logs {} -c {} -n {}`",
        "find out what delays this stage on the node, or raise job.activeDeadlineSeconds",
        "end the pods that the messages name, then run the helm command again",
        (
            "run `kata-node revert` on these nodes, or delete the Nodes of machines that are gone; "
            "then run the helm command again"
        ),
        "run `kubectl describe node {}`",
        "find out what creates the Job {} in the namespace {}",
        "run `kubectl describe job {} -n {}` to find its owner, and delete it if it is not needed",
        "correct job.nodes in the values",
        "run `kubectl get nodes --show-labels`, and correct the selection in the values",
        ("run `kubectl describe node`; remove these taints, or add them to tolerations in the values"),
        "correct k8sDistribution or containerRuntime in the values",
        (
            "check that the pods of node-feature-discovery run, and run the helm command again; "
            "job.waitForNodesSeconds is the time to wait for its labels"
        ),
        "set job.nodeSelectorExpressions to []; all nodes of this cluster are control-plane nodes",
        ("set NODE_NAME to metadata.name of the Node, or unset KUBECONFIG to keep the labels as they are"),
        "set NODE_NAME to metadata.name of the Node; in a pod, take it from spec.nodeName",
        "raise the timeout above the stability window",
        "run in a pod with a ServiceAccount, set KUBECONFIG, or use --offline",
        "run `kubectl get nodes` with the same file to check it",
        "check that the API server is reachable from this node",
        ("keep the ServiceAccount until the pods that use it are gone; its token is not valid any more"),
        (
            'give the account the verb "get" on the resource "daemonsets" (API group "apps") in this '
            "namespace, until the pods that use the account are gone"
        ),
        "check that this is the address of a Kubernetes API server",
        'give the account the verb "create" on the resource "events" in the namespace "default"',
        "use a token that is valid; in a pod, check that its ServiceAccount still exists",
        (
            'give the account the verb "{}" on the resource "nodes" (API group ""): bind it to a '
            'ClusterRole with "get" and "patch" on "nodes"'
        ),
        ("change the admission policy of the cluster that forbids this change; the account may make it"),
        "check that the address is right and reachable, and that its certificate is the cluster's",
        "look at the log of the API server",
        (
            "set NODE_NAME to a name that `kubectl get nodes` shows; in a pod, take it from "
            "spec.nodeName. If the name is right, wait until the kubelet has registered the node, or "
            "restart the kubelet if the Node was deleted; then run again"
        ),
        (
            "check that the runtime was restarted with these handlers in its configuration, and look "
            "at the kubelet's log; the kubelet reports the handlers that the runtime serves"
        ),
        "look at the kubelet's log on the node, then run again",
        "find what else changes this Node's taints, or remove them with `kubectl taint node`",
        "find what else changes this Node; metadata.managedFields of the Node names the writers",
        (
            "find what else changes this Node's labels (a kubelet that keeps restarting, a cloud "
            "controller, another installer); metadata.managedFields of the Node names the writers"
        ),
        "find out which machine has this Node name now, then start again for that machine",
        "set NODE_NAME to the name that this node has in the cluster",
        (
            "start the install or revert again, so that the Node is read again: another machine now "
            "has its name"
        ),
    ),
    "It needs a mount, a file attribute, another user or a real systemd.": (
        "replace {} by a plain file",
        (
            "remove noexec from its entry in /etc/fstab or from its mount unit and run `mount -o "
            "remount,exec` for it, or set env.installationPrefix to a directory on another file "
            "system"
        ),
        "mount the node's {} below the host root",
        "unmount {} and put a plain file in its place",
        "replace the symlink {} by a plain file",
        "make {} writable",
        "run `chattr -i -a {}`",
        "run as root, or make {} writable",
        "free {} on the file system of {}",
        "run `systemctl start {}`; kata-node restarts the runtime through this unit",
        "run as root",
        "run `kata-node {}` as root",
        ("the file system is read-only; mount it writable, or choose another env.installationPrefix"),
        "free some space on this file system, then run again",
        "raise the quota or free some space, then run again",
        "look at the kernel log of the node; the disk reports errors",
        (
            "; in a cluster, set containerd.configDir and containerd.configFileName to the directory "
            "and the name of {}"
        ),
    ),
    "Only its author knows what the text or the program should say.": (
        (
            ', or let the program that manages it write imports = ["{}/*.toml"] into it; kata-node '
            "then does not change this file"
        ),
        "run {} again after the install if it needs the current copy",
        "did you mean {}? Otherwise {}",
        "correct the file or the setting that names this path",
        "correct it in the runtime's configuration",
        "; did you mean {}?",
        "{}; if you replaced the archive on purpose, run `kata-node payload index {}`",
        ("run crio itself in the ExecStart of this unit, with the paths in --config and --config-dir"),
        "correct this value in the file",
        "remove the line of {} from the template by hand, then run again",
        "remove these tables from the template by hand, then run again",
        "remove the handler {} from this file",
        "make it a table, or remove {} from this file",
        "set {} = {} in [{}] of this file, then run the command again",
        "write the tables of the CRI plugin in this file as plain [tables], then run again",
        "{}; restart {}, end the pods that run on it, then run the command again",
        "correct the named files, then run the command again",
        "correct the named files before anything restarts the runtime, then run the command again",
        "remove {} from this file and end its pods, then run the command again",
        "{} {} {} {} by hand, then run again",
        "merge them into one key {}",
        "make {} an array of strings",
        (
            "remove by hand the lines from `{}` to `{}`, replace inline tables above them, like "
            "`plugins = {}`, by table headers, like `[plugins]`, then run again"
        ),
        "remove {} from this file by hand, then run again",
        "leave one line `{}` above its tables and one line `{}` below them, then run again",
        "remove that table, or set env.multiInstallSuffix to install under other names",
    ),
    "It says that the same command works when it is repeated, or that nothing is to be done.": (
        "wait until that run finishes, or raise --lock-timeout; a killed run releases the lock",
        "run again; systemd or the bus has just restarted",
        "run the same command again",
    ),
    "It is the start or the end of another hint.": (
        ", or set env.installationPrefix to a writable directory",
        "add {} to snapshotter.setup, or {}",
        "{} is an option of {}; {}",
        "run `kubectl describe node {}` to see the cause; {}",
        "the node's hint: {}",
        "hint: {}",
        "{}; or uninstall {}",
        "{}; if it fails again, see why: `{}`",
        "; set {} = true instead",
    ),
    "tests/cli/test_status.py follows it.": ("systemctl start {}",),
    "tests/settings follow it.": (
        "leave it empty for /opt/kata, or use a directory of your own, for example /srv/kata",
        "use a directory that has only the files of the container runtime",
        (
            "name a readable file; in a cluster, create the Secret that containerd.userDropInSecret "
            "names, with its key"
        ),
        "remove one of them",
        "save it as UTF-8",
    ),
    "tests/plan/test_install_dir.py follows it.": (
        "remove the symlink at {} or above it, or set env.installationPrefix to another directory",
    ),
    "tests/pipeline/test_refused_config.py follows it.": (
        (
            "change the value that the refusal is about, for example containerd.userDropIn; to try the "
            "same configuration again, run with --retry-refused"
        ),
    ),
    "A machine could follow it. No test does so yet.": (
        (
            "; if the runtime is no longer {}, for which it was configured, run `kata-node revert` "
            "and then `kata-node install`"
        ),
        (
            "if the runtime reads this file, set containerd.configDir and containerd.configFileName "
            "to it; if not, find out who changed the receipt"
        ),
        ("enable a shim that runs on this architecture, or do not select nodes of this architecture"),
        "restore the receipt from a copy, or move its directory away",
    ),
}
