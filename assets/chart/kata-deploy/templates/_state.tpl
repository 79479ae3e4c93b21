{{- /*
The state of a release: `desiredState`, and settings that are fixed until it is uninstalled, because they locate the
installation on the nodes. It is kept in a ConfigMap with the name of the release. The programs read `desiredState` there
before they change a node. `helm template` does not ask the cluster and cannot read it.
*/ -}}

{{- define "kata-deploy.state.name" -}}
kata-deploy-state.{{ .Release.Name }}
{{- end -}}

{{- /* `true` if the values want Kata removed from the nodes; else empty. */ -}}
{{- define "kata-deploy.isAbsent" -}}
{{- if eq "absent" (.Values.desiredState | default "present") -}}true{{- end -}}
{{- end -}}

{{- /*
The ClusterRoles of the cluster, name -> release that owns it, as JSON. Every cluster with RBAC has ClusterRoles, so the
map is empty only if the chart is rendered without a cluster. helm must be allowed to list ClusterRoles, to find another
release with the same installation.
*/ -}}
{{- define "kata-deploy.clusterRoles" -}}
{{- $owners := dict -}}
{{- range (lookup "rbac.authorization.k8s.io/v1" "ClusterRole" "" "").items -}}
{{- $_ := set $owners .metadata.name (include "kata-deploy.ownerOf" .) -}}
{{- end -}}
{{- toJson $owners -}}
{{- end -}}

{{- /*
`true` if helm renders the chart with a cluster, so that helm itself runs the hooks; else empty. Without a cluster
(`helm template`), the manifests are ordinary objects for kubectl and others. A hook of an uninstall would run at once
there, and uninstall a working release.
*/ -}}
{{- define "kata-deploy.hasCluster" -}}
{{- if include "kata-deploy.once" (list . "kata-deploy.clusterRoles") | fromJson -}}true{{- end -}}
{{- end -}}

{{- /* What locates the installation on the nodes, as a JSON map. It is fixed while Kata is on a node. */ -}}
{{- define "kata-deploy.installation" -}}
{{- $prefix := clean ((.Values.env).installationPrefix | default "/") -}}
{{- dict "deploymentMode" (include "kata-deploy.mode" .) "multiInstallSuffix" (include "kata-deploy.suffix" .) "installationPrefix" $prefix | toJson -}}
{{- end -}}

{{- define "kata-deploy.state" -}}
{{- $kept := include "kata-deploy.kept" . | fromJson -}}
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
{{- $installation := include "kata-deploy.installation" . | fromJson -}}
{{- $prefix := $installation.installationPrefix -}}
{{- if ne $prefix ($kept.installationPrefix | default $prefix) -}}
{{- include "kata-deploy.refuse" (list $ (printf "env.installationPrefix: release %s was installed below %s and cannot change to %s, because nothing would revert its nodes; uninstall the release first (the state is in the ConfigMap %s)" .Release.Name $kept.installationPrefix $prefix (include "kata-deploy.state.name" .))) -}}
{{- end -}}
{{- /* If nydus was ever set up, a revert must be able to remove it, even if the values no longer list it. */ -}}
{{- $nydus := or (eq "true" ($kept.nydus | default "")) (has "nydus" ((.Values.snapshotter).setup | default list)) -}}
{{- merge $installation (dict "desiredState" (.Values.desiredState | default "present") "nydus" (toString $nydus)) | toJson -}}
{{- end -}}

{{- /* `true` if Argo CD applies the manifests; else empty. helm and Flux run helm's hooks, whatever the value is. */ -}}
{{- define "kata-deploy.isArgo" -}}
{{- if and (eq "argocd" (.Values.gitops | default "")) (not (include "kata-deploy.hasCluster" .)) -}}true{{- end -}}
{{- end -}}

{{- /*
Fails if another release conflicts with this one: a release with the same installation name, a second
node-feature-discovery, or a release of another chart with the same name. It asks the cluster, so it is included once.
*/ -}}
{{- define "kata-deploy.checkConflicts" -}}
{{- $name := include "kata-deploy.fullname" . -}}
{{- range $role, $owner := include "kata-deploy.once" (list . "kata-deploy.clusterRoles") | fromJson -}}
{{- if hasPrefix (printf "%s-labeller." $name) $role -}}
{{- if and $owner (ne $owner (include "kata-deploy.release" $)) -}}
{{- include "kata-deploy.refuse" (list $ (printf "env.multiInstallSuffix: the release %s (namespace/name) already has the installation %q on the nodes; upgrade or uninstall that release, or set another suffix; if that release no longer exists, delete its leftover ClusterRole %s" $owner (include "kata-deploy.instance" $) $role)) -}}
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
