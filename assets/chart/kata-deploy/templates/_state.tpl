{{- /*
What a release was installed with and keeps: it is how what is on the nodes is found again. Kept in a
ConfigMap whose name is the release's alone. Where helm does not ask the cluster (`helm template`)
nothing is known of it.
*/ -}}

{{- define "kata-deploy.state.name" -}}
kata-deploy-state.{{ .Release.Name }}
{{- end -}}

{{- define "kata-deploy.state" -}}
{{- $kept := ((lookup "v1" "ConfigMap" .Release.Namespace (include "kata-deploy.state.name" .)).data) | default dict -}}
{{- $mode := include "kata-deploy.mode" . -}}
{{- $suffix := include "kata-deploy.suffix" . -}}
{{- if $kept -}}
{{- $remedy := printf "uninstall the release first, or install another one beside it; kept in the ConfigMap %s" (include "kata-deploy.state.name" .) -}}
{{- if ne $mode ($kept.deploymentMode | default $mode) -}}
{{- fail (printf "deploymentMode: release %s was installed with %s, and cannot go on with %s: nobody would take away what is on the nodes; %s" .Release.Name $kept.deploymentMode $mode $remedy) -}}
{{- end -}}
{{- if ne $suffix ($kept.multiInstallSuffix | default "") -}}
{{- fail (printf "env.multiInstallSuffix: release %s was installed with %q, and cannot go on with %q: nobody would take away what is on the nodes; %s" .Release.Name ($kept.multiInstallSuffix | default "") $suffix $remedy) -}}
{{- end -}}
{{- end -}}
{{- $prefix := clean ((.Values.env).installationPrefix | default "/") -}}
{{- if ne $prefix ($kept.installationPrefix | default $prefix) -}}
{{- fail (printf "env.installationPrefix: release %s was installed below %s, and cannot go on below %s: nobody would take away what is there; uninstall the release first; kept in the ConfigMap %s" .Release.Name $kept.installationPrefix $prefix (include "kata-deploy.state.name" .)) -}}
{{- end -}}
{{- /* Once there, nydus has to be taken away as well when it is no longer asked for. */ -}}
{{- $nydus := or (eq "true" ($kept.nydus | default "")) (has "nydus" ((.Values.snapshotter).setup | default list)) -}}
{{- dict "deploymentMode" $mode "multiInstallSuffix" $suffix "installationPrefix" $prefix "nydus" (toString $nydus) | toJson -}}
{{- end -}}

{{- /*
Fails where the nodes are, or would be, somebody else's: two releases that are the same installation would undo
each other's work, and so would two of node-feature-discovery; and what another chart has put on the nodes is not
known to kata-node. Asks the cluster, so it is included once.
*/ -}}
{{- define "kata-deploy.strangers" -}}
{{- $name := include "kata-deploy.fullname" . -}}
{{- range (lookup "rbac.authorization.k8s.io/v1" "ClusterRole" "" "").items -}}
{{- if hasPrefix (printf "%s-labeller." $name) .metadata.name -}}
{{- $owner := include "kata-deploy.owner" . -}}
{{- if and $owner (ne $owner (include "kata-deploy.release" $)) -}}
{{- fail (printf "env.multiInstallSuffix: the release %s (namespace/name) has the installation %q on the nodes already; upgrade or uninstall that one, or give this one a suffix of its own; if that release is long gone, delete the ClusterRole %s, which it left" $owner (include "kata-deploy.instance" $) .metadata.name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if (index .Values "node-feature-discovery").enabled -}}
{{- $_ := include "kata-deploy.nfd" . -}}
{{- end -}}
{{- if .Release.IsUpgrade -}}
{{- $daemonset := lookup "apps/v1" "DaemonSet" .Release.Namespace $name -}}
{{- $ours := eq "node" (dig "spec" "selector" "matchLabels" "app.kubernetes.io/component" "" $daemonset) -}}
{{- if or (and $daemonset (not $ours)) (lookup "v1" "ConfigMap" .Release.Namespace (printf "%s-job-templates" $name)) -}}
{{- fail (printf "release %s was installed by another chart of this name, and this one does not know what that has put on the nodes; uninstall the release with helm, then install this chart" .Release.Name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
