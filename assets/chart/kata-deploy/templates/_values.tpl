{{- /*
What templates ask of the values. A key that is null, or whose section is, is as if it were not there.
*/ -}}

{{- /* Fails for what is said in a way, or asks for a thing, that this chart does not know. */ -}}
{{- define "kata-deploy.refusals" -}}
{{- range $path, $remedy := .Files.Get "files/gone.json" | fromJson -}}
{{- if include "kata-deploy.at" (list $.Values $path) -}}
{{- fail (printf "%s: %s" $path $remedy) -}}
{{- end -}}
{{- end -}}
{{- if eq "integrity" (toString (.Values.snapshotter).erofsSnapshotterMode) -}}
{{- fail "snapshotter.erofsSnapshotterMode: integrity is a word of another chart; write erofsDmverity: true in its place" -}}
{{- end -}}
{{- range $shim := include "kata-deploy.shims.on" . | fromJsonArray -}}
{{- range $key := list "hypervisor.rootless" "kernelModulesImages" -}}
{{- if include "kata-deploy.at" (list (get $.Values.shims $shim) $key) -}}
{{- fail (printf "shims.%s.%s: is not in this release; take it out, or switch off the shim" $shim $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Not empty when something is said at a path; takes (list $values "env.debug"). */ -}}
{{- define "kata-deploy.at" -}}
{{- $found := index . 0 -}}
{{- range splitList "." (index . 1) -}}
{{- $found = index (kindIs "map" $found | ternary $found dict) . -}}
{{- end -}}
{{- if $found -}}true{{- end -}}
{{- end -}}

{{- define "kata-deploy.mode" -}}
{{- $mode := .Values.deploymentMode | default "daemonset" -}}
{{- if not (has $mode (list "daemonset" "job")) -}}
{{- fail (printf "deploymentMode: %v is neither daemonset nor job" $mode) -}}
{{- end -}}
{{- $mode -}}
{{- end -}}

{{- /* Not empty when nothing stays on the nodes. */ -}}
{{- define "kata-deploy.jobs" -}}
{{- if eq (include "kata-deploy.mode" .) "job" -}}true{{- end -}}
{{- end -}}

{{- /* A part of the fullname that fits into so many characters; takes (list $ "part" 40). */ -}}
{{- define "kata-deploy.shortName" -}}
{{- $root := index . 0 -}}
{{- $part := index . 1 -}}
{{- $limit := index . 2 -}}
{{- $base := include "kata-deploy.fullname" $root -}}
{{- $whole := printf "%s-%s" $base $part -}}
{{- if le (len $whole) $limit -}}
{{- $whole -}}
{{- else -}}
{{- /* What is cut off is told by a part of its sum: two long suffixes may begin alike. */ -}}
{{- printf "%s-%s-%s" ($base | trunc (sub $limit (add (len $part) 10) | int) | trimSuffix "-") (sha256sum $base | trunc 8) $part -}}
{{- end -}}
{{- end -}}

{{- /* An image; takes (list $image "job.dispatcherImage" "the tag without one"). */ -}}
{{- define "kata-deploy.image" -}}
{{- $image := index . 0 | default dict -}}
{{- $key := index . 1 -}}
{{- $reference := $image.reference | default "" | toString | trim -}}
{{- $tag := $image.tag | default "" | toString | trim -}}
{{- /* A colon behind the last slash: a registry may have a port. */ -}}
{{- $whole := or (contains "@" $reference) (contains ":" (splitList "/" $reference | last)) -}}
{{- if not $reference -}}
{{- fail (printf "%s.reference: is empty; name the image, as in quay.io/kata-containers/kata-deploy" $key) -}}
{{- else if and $whole $tag -}}
{{- fail (printf "%s.tag: %s has a tag or a digest already; take out the tag %s, or that" $key $reference $tag) -}}
{{- else if $whole -}}
{{- $reference -}}
{{- else if regexMatch "^sha256:" $tag -}}
{{- if not (regexMatch "^sha256:[0-9a-f]{64}$" $tag) -}}
{{- fail (printf "%s.tag: %s is no whole digest; it has 64 digits behind sha256:" $key $tag) -}}
{{- end -}}
{{- printf "%s@%s" $reference $tag -}}
{{- else -}}
{{- printf "%s:%s" $reference ($tag | default (index . 2)) -}}
{{- end -}}
{{- end -}}

{{- define "kata-deploy.logLevel" -}}
{{- $level := .Values.logLevel | default (ternary "debug" "info" (.Values.debug | default false)) -}}
{{- get (dict "warn" "warning" "trace" "debug") $level | default $level -}}
{{- end -}}

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

{{- /* Those of the only runtime, or of the first: for pods that the dispatcher does not make. */ -}}
{{- define "kata-deploy.runtime" -}}
{{- include "kata-deploy.runtimes" . | fromJsonArray | first -}}
{{- end -}}

{{- /* What the pods of the mode `job` have as labels, as well; takes (list $ "component"). */ -}}
{{- define "kata-deploy.selectorLabels" -}}
app.kubernetes.io/name: kata-deploy
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- /* The labels of the values, without those that are the chart's. */ -}}
{{- define "kata-deploy.podLabels" -}}
{{- $own := list "name" "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" -}}
{{- range $key, $value := .Values.podLabels -}}
{{- if not (has $key $own) }}
{{ toJson $key }}: {{ $value | toString | toJson }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "kata-deploy.tolerations.startup" -}}
{{- $tolerations := .Values.tolerations | default list -}}
{{- range include "kata-deploy.labeller.startupTaints" . | fromJsonArray -}}
{{- $parts := splitn ":" 2 . -}}
{{- $toleration := dict "key" $parts._0 "operator" "Exists" -}}
{{- if $parts._1 -}}
{{- $_ := set $toleration "effect" $parts._1 -}}
{{- end -}}
{{- $tolerations = append $tolerations $toleration -}}
{{- end -}}
{{- toJson $tolerations -}}
{{- end -}}

{{- /* A label selector of labels and expressions; takes (list $labels $expressions "job.nodeSelectorExpressions"). */ -}}
{{- define "kata-deploy.labelSelector" -}}
{{- $key := index . 2 -}}
{{- $parts := list -}}
{{- range $label, $value := index . 0 -}}
{{- $parts = append $parts (printf "%s=%s" $label $value) -}}
{{- end -}}
{{- range $at, $each := index . 1 -}}
{{- $where := printf "%s[%d]" $key $at -}}
{{- $values := $each.values | default list -}}
{{- if not $each.key -}}
{{- fail (printf "%s.key: is missing; name the label of the nodes" $where) -}}
{{- end -}}
{{- if has $each.operator (list "In" "NotIn") -}}
{{- if not $values -}}
{{- fail (printf "%s.values: %s needs at least one value for %s" $where $each.operator $each.key) -}}
{{- end -}}
{{- $parts = append $parts (printf "%s %s (%s)" $each.key (lower $each.operator) (join "," $values)) -}}
{{- else if has $each.operator (list "Exists" "DoesNotExist") -}}
{{- if $values -}}
{{- fail (printf "%s.values: %s takes no values for %s; take them out, or use In or NotIn" $where $each.operator $each.key) -}}
{{- end -}}
{{- $parts = append $parts (printf "%s%s" (ternary "!" "" (eq $each.operator "DoesNotExist")) $each.key) -}}
{{- else -}}
{{- fail (printf "%s.operator: %v is none of In, NotIn, Exists, DoesNotExist" $where $each.operator) -}}
{{- end -}}
{{- end -}}
{{- join "," $parts -}}
{{- end -}}

{{- /* Labels of nodes, for pods that the scheduler places, or a DaemonSet: none of this runs on Windows. */ -}}
{{- define "kata-deploy.linux" -}}
{{- mergeOverwrite (dict) (. | default dict) (dict "kubernetes.io/os" "linux") | toYaml -}}
{{- end -}}

{{- /* The nodes an action is for, as the dispatcher takes it; takes (list $ "job" or "job.cleanup"). */ -}}
{{- define "kata-deploy.selection" -}}
{{- $root := index . 0 -}}
{{- $where := index . 1 -}}
{{- $job := $root.Values.job | default dict -}}
{{- $chosen := ternary $job ($job.cleanup | default dict) (eq $where "job") -}}
{{- $labels := $chosen.nodeSelector | default dict -}}
{{- if eq $where "job" -}}
{{- $labels = merge (dict) $labels ($root.Values.nodeSelector | default dict) -}}
{{- range $label, $value := $root.Values.nodeSelector -}}
{{- if ne $value (get $labels $label) -}}
{{- fail (printf "job.nodeSelector: asks for %s=%s, and nodeSelector for %s=%s: no node has both" $label (get $labels $label) $label $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $chosen.nodes -}}
{{- dict "nodes" $chosen.nodes | toJson -}}
{{- else -}}
{{- $notWindows := dict "key" "kubernetes.io/os" "operator" "NotIn" "values" (list "windows") -}}
{{- $expressions := append ($chosen.nodeSelectorExpressions | default list) $notWindows -}}
{{- $selector := include "kata-deploy.labelSelector" (list $labels $expressions (printf "%s.nodeSelectorExpressions" $where)) -}}
{{- dict "labelSelector" $selector | toJson -}}
{{- end -}}
{{- end -}}
