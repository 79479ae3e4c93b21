{{- /*
The state of a release: settings that are fixed until it is uninstalled, because they locate the installation on the
nodes. It is kept in a ConfigMap with the name of the release. `helm template` does not ask the cluster and cannot read it.
*/ -}}

{{- define "kata-deploy.state.name" -}}
kata-deploy-state.{{ .Release.Name }}
{{- end -}}

{{- define "kata-deploy.state" -}}
{{- $kept := ((lookup "v1" "ConfigMap" .Release.Namespace (include "kata-deploy.state.name" .)).data) | default dict -}}
{{- $mode := include "kata-deploy.mode" . -}}
{{- $suffix := include "kata-deploy.suffix" . -}}
{{- if $kept -}}
{{- $remedy := printf "uninstall the release first, or install a second release (the state is in the ConfigMap %s)" (include "kata-deploy.state.name" .) -}}
{{- if ne $mode ($kept.deploymentMode | default $mode) -}}
{{- include "kata-deploy.refuse" (list $ (printf "deploymentMode: release %s was installed with %s and cannot change to %s, because nothing would revert its nodes; %s" .Release.Name $kept.deploymentMode $mode $remedy)) -}}
{{- end -}}
{{- if ne $suffix ($kept.multiInstallSuffix | default "") -}}
{{- include "kata-deploy.refuse" (list $ (printf "env.multiInstallSuffix: release %s was installed with %q and cannot change to %q, because nothing would revert its nodes; %s" .Release.Name ($kept.multiInstallSuffix | default "") $suffix $remedy)) -}}
{{- end -}}
{{- end -}}
{{- $prefix := clean ((.Values.env).installationPrefix | default "/") -}}
{{- if ne $prefix ($kept.installationPrefix | default $prefix) -}}
{{- include "kata-deploy.refuse" (list $ (printf "env.installationPrefix: release %s was installed below %s and cannot change to %s, because nothing would revert its nodes; uninstall the release first (the state is in the ConfigMap %s)" .Release.Name $kept.installationPrefix $prefix (include "kata-deploy.state.name" .))) -}}
{{- end -}}
{{- /* If nydus was ever set up, a revert must be able to remove it, even if the values no longer list it. */ -}}
{{- $nydus := or (eq "true" ($kept.nydus | default "")) (has "nydus" ((.Values.snapshotter).setup | default list)) -}}
{{- dict "deploymentMode" $mode "multiInstallSuffix" $suffix "installationPrefix" $prefix "nydus" (toString $nydus) | toJson -}}
{{- end -}}

{{- /*
Fails if another release conflicts with this one: a release with the same installation name, a second
node-feature-discovery, or a release of another chart with the same name. It asks the cluster, so it is included once.
*/ -}}
{{- define "kata-deploy.checkConflicts" -}}
{{- $name := include "kata-deploy.fullname" . -}}
{{- range (lookup "rbac.authorization.k8s.io/v1" "ClusterRole" "" "").items -}}
{{- if hasPrefix (printf "%s-labeller." $name) .metadata.name -}}
{{- $owner := include "kata-deploy.ownerOf" . -}}
{{- if and $owner (ne $owner (include "kata-deploy.release" $)) -}}
{{- include "kata-deploy.refuse" (list $ (printf "env.multiInstallSuffix: the release %s (namespace/name) already has the installation %q on the nodes; upgrade or uninstall that release, or set another suffix; if that release no longer exists, delete its leftover ClusterRole %s" $owner (include "kata-deploy.instance" $) .metadata.name)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if (index .Values "node-feature-discovery").enabled -}}
{{- $_ := include "kata-deploy.once" (list . "kata-deploy.hasNodeFeatureDiscovery") -}}
{{- end -}}
{{- if .Release.IsUpgrade -}}
{{- $daemonset := lookup "apps/v1" "DaemonSet" .Release.Namespace $name -}}
{{- $ours := eq "node" (dig "spec" "selector" "matchLabels" "app.kubernetes.io/component" "" $daemonset) -}}
{{- if or (and $daemonset (not $ours)) (lookup "v1" "ConfigMap" .Release.Namespace (printf "%s-job-templates" $name)) -}}
{{- include "kata-deploy.refuse" (list $ (printf "release %s was installed by another chart of this name, and this chart cannot revert what that chart installed on the nodes; uninstall the release with helm, then install this chart" .Release.Name)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
