{{- /*
Host paths of the pods, by runtime, distribution and stage. They are the paths that docs/a-node-by-hand.md lists for
`kata-node` in a container.
*/ -}}

{{- /* The distribution, with the aliases resolved. */ -}}
{{- define "kata-deploy.distribution" -}}
{{- $name := .Values.k8sDistribution | default "k8s" -}}
{{- get (dict "kubeadm" "k8s" "vanilla" "k8s") $name | default $name -}}
{{- end -}}

{{- /*
The container runtimes that have a pod template, as a JSON list. The dispatcher chooses by the runtime that a Node
reports. A pod of the DaemonSet lists its host paths before it is on a node, so there is one runtime only.
*/ -}}
{{- define "kata-deploy.runtimes" -}}
{{- $distribution := include "kata-deploy.distribution" . -}}
{{- $runtime := .Values.containerRuntime | default "auto" -}}
{{- if and (eq $runtime "crio") (ne $distribution "k8s") -}}
{{- include "kata-deploy.refuse" (list . (printf "containerRuntime: %s always runs containerd, not crio; remove containerRuntime, or set k8sDistribution: k8s if CRI-O runs as its own unit" $distribution)) -}}
{{- end -}}
{{- if ne $runtime "auto" -}}
{{- list $runtime | toJson -}}
{{- else if and (include "kata-deploy.isJobMode" .) (eq $distribution "k8s") -}}
{{- list "containerd" "crio" | toJson -}}
{{- else -}}
{{- list "containerd" | toJson -}}
{{- end -}}
{{- end -}}

{{- /* The runtime of pods that the dispatcher does not create: the only one, or the first. */ -}}
{{- define "kata-deploy.runtime" -}}
{{- include "kata-deploy.runtimes" . | fromJsonArray | first -}}
{{- end -}}

{{- /*
Refuses a directory of the system, which no pod may have. files/system-dirs.json lists them: `trees` with all that is below
them, `directories` alone, `prefixTrees` and `sharedDirectories` for some values only. kata-node reads the same file. Takes
(list $ "key of the values" "given path" "directory that is mounted").
*/ -}}
{{- define "kata-deploy.checkSystemDir" -}}
{{- $root := index . 0 -}}
{{- $key := index . 1 -}}
{{- $list := $root.Files.Get "files/system-dirs.json" | fromJson -}}
{{- $isPrefix := eq $key "env.installationPrefix" -}}
{{- $path := regexReplaceAll "^/var/run(/|$)" (clean (index . 3)) "/run$1" -}}
{{- $found := has $path (concat $list.directories (ternary list $list.sharedDirectories $isPrefix)) -}}
{{- range concat $list.trees (ternary $list.prefixTrees list $isPrefix) -}}
{{- $found = or $found (hasPrefix (printf "%s/" .) (printf "%s/" $path)) -}}
{{- end -}}
{{- if $found -}}
{{- $remedy := ternary "leave it empty for /opt/kata, or use a directory of your own, for example /srv/kata" "use a directory that has only the files of the container runtime" $isPrefix -}}
{{- include "kata-deploy.refuse" (list $root (printf "%s: %s would give the pods %s, a directory of the system; %s" $key (index . 2) $path $remedy)) -}}
{{- end -}}
{{- end -}}

{{- /*
Host paths of a runtime, as {"installDir": ..., "removalDir": ..., "config": ..., "socket": ...}. kata-node looks for them
in the same places. Takes (list $ "containerd" or "crio").
*/ -}}
{{- define "kata-deploy.hostPaths" -}}
{{- $root := index . 0 -}}
{{- $runtime := index . 1 -}}
{{- with $root -}}
{{- $distribution := include "kata-deploy.distribution" . -}}
{{- $all := dict
  "k8s" (dict "config" "/etc/containerd" "socket" "/run/containerd/containerd.sock")
  "k3s" (dict "config" "/var/lib/rancher/k3s/agent/etc/containerd" "socket" "/run/k3s/containerd/containerd.sock")
  "rke2" (dict "config" "/var/lib/rancher/rke2/agent/etc/containerd" "socket" "/run/k3s/containerd/containerd.sock")
  "k0s" (dict "config" "/etc/k0s" "socket" "/run/k0s/containerd.sock")
  "microk8s" (dict "config" "/var/snap/microk8s/current" "socket" "/var/snap/microk8s/common/run/containerd.sock")
-}}
{{- $crio := dict "config" "/etc/crio" "socket" "/run/crio/crio.sock" -}}
{{- $paths := ternary $crio (get $all $distribution) (eq $runtime "crio") -}}
{{- if ne $runtime "crio" -}}
{{- $config := clean ((.Values.containerd).configDir | default $paths.config) -}}
{{- $socket := trimPrefix "unix://" ((.Values.containerd).runtimeSocket | default $paths.socket) -}}
{{- range $key, $path := dict "configDir" $config "runtimeSocket" $socket -}}
{{- if not (hasPrefix "/" $path) -}}
{{- include "kata-deploy.refuse" (list $root (printf "containerd.%s: %s is not an absolute path; write a path that begins with /" $key $path)) -}}
{{- end -}}
{{- include "kata-deploy.checkSystemDir" (list $root (printf "containerd.%s" $key) $path (ternary (dir $path) $path (eq $key "runtimeSocket"))) -}}
{{- end -}}
{{- $paths = dict "config" $config "socket" $socket -}}
{{- end -}}
{{- $prefix := "" -}}
{{- with (.Values.env).installationPrefix -}}
{{- if or (not (hasPrefix "/" .)) (has ".." (splitList "/" .)) -}}
{{- include "kata-deploy.refuse" (list $root (printf "env.installationPrefix: %s is not an absolute path without ..; write a path that begins with / and has no .." .)) -}}
{{- else -}}
{{- include "kata-deploy.checkSystemDir" (list $root "env.installationPrefix" . .) -}}
{{- end -}}
{{- $prefix = clean . -}}
{{- end -}}
{{- $suffix := include "kata-deploy.suffix" . -}}
{{- $installDir := printf "%s/opt/kata%s" $prefix (ternary "" (printf "-%s" $suffix) (empty $suffix)) -}}
{{- toJson (merge (dict "installDir" $installDir "removalDir" ($prefix | default "/opt")) $paths) -}}
{{- end -}}
{{- end -}}

{{- /*
Host paths by stage, as {"host-check": [...], "artifacts": [...], "cri": [...], ...}. Takes
(list $ "containerd" or "crio").
*/ -}}
{{- define "kata-deploy.stageHostPaths" -}}
{{- $paths := include "kata-deploy.hostPaths" . | fromJson -}}
{{- $nydus := eq "true" (include "kata-deploy.once" (list (index . 0) "kata-deploy.state") | fromJson).nydus -}}
{{- $socket := dir $paths.socket -}}
{{- $id := "/etc/machine-id" -}}
{{- /* A container cannot remove the directory that is mounted in it, so only the stage that removes it has the directory
above. Of a prefix it removes the directory opt as well. */ -}}
{{- $check := list $paths.installDir $paths.config $id $socket "/run/dbus" "/dev" "/run/kata-node" -}}
{{- $artifacts := list $paths.installDir $id "/run/kata-node" -}}
{{- $removal := list $paths.removalDir $id "/run/kata-node" -}}
{{- $cri := list $paths.installDir $paths.config $id $socket "/run/dbus" "/run/kata-node" -}}
{{- /* nydus needs a systemd unit. CRI-O has no snapshotters. */ -}}
{{- if and $nydus (ne (index . 1) "crio") -}}
{{- $check = append $check "/etc/systemd/system" -}}
{{- $cri = append $cri "/etc/systemd/system" -}}
{{- end -}}
{{- $check = uniq $check -}}
{{- $cri = uniq $cri -}}
{{- dict "host-check" $check "artifacts" $artifacts "cri" $cri "remove-artifacts" $removal "revert-cri" $cri "check-pods" $cri | toJson -}}
{{- end -}}

{{- /* The volume name of a host path. */ -}}
{{- define "kata-deploy.volumeName" -}}
{{- $name := . | trimPrefix "/" | replace "/" "-" | replace "." "-" | replace "_" "-" | lower -}}
{{- ternary $name (printf "host-%s" (sha256sum . | trunc 16)) (and (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" $name) (le (len $name) 63)) -}}
{{- end -}}

{{- /* hostPath volumes. Takes (list $ $paths). */ -}}
{{- define "kata-deploy.hostVolumes" -}}
{{- $paths := include "kata-deploy.hostPaths" (list (index . 0) "containerd") | fromJson -}}
{{- range index . 1 | uniq | sortAlpha }}
- name: {{ include "kata-deploy.volumeName" . }}
  hostPath:
    path: {{ . }}
    {{- if eq . "/etc/machine-id" }}
    type: File
    {{- else if or (has . (list $paths.installDir $paths.removalDir)) (hasPrefix "/run/" .) (has . (list "/etc/containerd" "/etc/crio")) }}
    # A pod with a volume that cannot be mounted waits without an error. The kubelet creates the directory, so
    # host-check runs and reports what is wrong. An empty directory in /run disappears at the next boot.
    type: DirectoryOrCreate
    {{- else }}
    # Directories of other distributions are not created on a node that does not have them.
    type: Directory
    {{- end }}
{{- end }}
{{- end -}}
