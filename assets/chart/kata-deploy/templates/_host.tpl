{{- /*
What the pods get to see of the node they are on, by what runs there and by the stage. The README of the project says
the same of `kata-node` in a container.
*/ -}}

{{- /* The distribution by its first name. */ -}}
{{- define "kata-deploy.distribution" -}}
{{- $name := .Values.k8sDistribution | default "k8s" -}}
{{- get (dict "kubeadm" "k8s" "vanilla" "k8s") $name | default $name -}}
{{- end -}}

{{- /*
The CRI runtimes there are pods for: both, where the dispatcher chooses by what a Node says it runs. A
pod of the DaemonSet names the directories of the host before it is there, so it is for one of them.
*/ -}}
{{- define "kata-deploy.runtimes" -}}
{{- $distribution := include "kata-deploy.distribution" . -}}
{{- $runtime := .Values.containerRuntime | default "auto" -}}
{{- if and (eq $runtime "crio") (ne $distribution "k8s") -}}
{{- fail (printf "containerRuntime: %s runs containerd, and not crio; set k8sDistribution to k8s where CRI-O is a service of its own, else take containerRuntime out" $distribution) -}}
{{- end -}}
{{- if ne $runtime "auto" -}}
{{- list $runtime | toJson -}}
{{- else if and (include "kata-deploy.jobs" .) (eq $distribution "k8s") -}}
{{- list "containerd" "crio" | toJson -}}
{{- else -}}
{{- list "containerd" | toJson -}}
{{- end -}}
{{- end -}}

{{- /* Those of the only runtime, or of the first: for pods that the dispatcher does not make. */ -}}
{{- define "kata-deploy.runtime" -}}
{{- include "kata-deploy.runtimes" . | fromJsonArray | first -}}
{{- end -}}

{{- /*
Directories of the host, as {"config": ..., "socket": ...}: where kata-node looks for them, too. Takes
(list $ "containerd" or "crio").
*/ -}}
{{- define "kata-deploy.hostPaths" -}}
{{- $runtime := index . 1 -}}
{{- with index . 0 -}}
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
{{- fail (printf "containerd.%s: %s is not an absolute path" $key $path) -}}
{{- end -}}
{{- if has "/" (list $path (ternary (dir $path) "" (eq $key "runtimeSocket"))) -}}
{{- fail (printf "containerd.%s: %s would give the pods all of the node; it has to be in a directory of its own" $key $path) -}}
{{- end -}}
{{- end -}}
{{- $paths = dict "config" $config "socket" $socket -}}
{{- end -}}
{{- $given := (.Values.env).installationPrefix | default "/" -}}
{{- if or (not (hasPrefix "/" $given)) (has ".." (splitList "/" $given)) -}}
{{- fail (printf "env.installationPrefix: %s is not an absolute path without .." $given) -}}
{{- end -}}
{{- $prefix := clean $given -}}
{{- toJson (merge (dict "opt" (ternary "/opt" $prefix (eq $prefix "/"))) $paths) -}}
{{- end -}}
{{- end -}}

{{- /*
Directories of the host by stage: {"host-check": [...], "artifacts": [...], "cri": [...]}; takes
(list $ "containerd" or "crio").
*/ -}}
{{- define "kata-deploy.mounts" -}}
{{- $paths := include "kata-deploy.hostPaths" . | fromJson -}}
{{- $nydus := eq "true" (include "kata-deploy.state" (index . 0) | fromJson).nydus -}}
{{- $socket := dir $paths.socket -}}
{{- $id := "/etc/machine-id" -}}
{{- $check := list $paths.opt $paths.config $id $socket "/run/dbus" "/dev" -}}
{{- $artifacts := list $paths.opt $id "/run/kata-node" -}}
{{- $cri := list $paths.opt $paths.config $id $socket "/run/dbus" "/run/kata-node" -}}
{{- /* CRI-O has no snapshotters. */ -}}
{{- if and $nydus (ne (index . 1) "crio") -}}
{{- $check = append $check "/etc/systemd/system" -}}
{{- $cri = append $cri "/etc/systemd/system" -}}
{{- end -}}
{{- $check = uniq $check -}}
{{- $cri = uniq $cri -}}
{{- dict "host-check" $check "artifacts" $artifacts "cri" $cri "remove-artifacts" $artifacts "revert-cri" $cri | toJson -}}
{{- end -}}

{{- /* The name of the volume of a path. */ -}}
{{- define "kata-deploy.volumeName" -}}
{{- $name := . | trimPrefix "/" | replace "/" "-" | replace "." "-" | replace "_" "-" | lower -}}
{{- ternary $name (printf "host-%s" (sha256sum . | trunc 16)) (and (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" $name) (le (len $name) 63)) -}}
{{- end -}}

{{- /* hostPath volumes of the given paths; takes (list $ $paths). */ -}}
{{- define "kata-deploy.hostVolumes" -}}
{{- $opt := (include "kata-deploy.hostPaths" (list (index . 0) "containerd") | fromJson).opt -}}
{{- range index . 1 | uniq | sortAlpha }}
- name: {{ include "kata-deploy.volumeName" . }}
  hostPath:
    path: {{ . }}
    {{- if eq . "/etc/machine-id" }}
    type: File
    {{- else if or (eq . $opt) (hasPrefix "/run/" .) (has . (list "/etc/containerd" "/etc/crio")) }}
    # A pod whose volumes cannot be mounted waits without a word. So that host-check can say what is wrong, a
    # directory is made that is empty then, and if it is in /run gone with the next boot.
    type: DirectoryOrCreate
    {{- else }}
    # Where distributions have a layout of their own, nothing is made on a node that has not got it.
    type: Directory
    {{- end }}
{{- end }}
{{- end -}}
