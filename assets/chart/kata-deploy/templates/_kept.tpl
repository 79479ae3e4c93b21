{{- /*
What the release installed before, as a JSON map with the keys of its state object; `{}` if nothing is known. If somebody
deleted the state object, the other objects of the release tell: the names of its ClusterRoles have the suffix, only the
mode `job` has a dispatcher, and the values of the nodes have the prefix.
*/ -}}
{{- define "kata-deploy.kept" -}}
{{- $kept := ((lookup "v1" "ConfigMap" .Release.Namespace (include "kata-deploy.state.name" .)).data) | default dict -}}
{{- if not $kept -}}
{{- $roles := include "kata-deploy.once" (list . "kata-deploy.clusterRoles") | fromJson -}}
{{- $dispatcher := printf "-dispatcher.%s.%s" .Release.Namespace .Release.Name -}}
{{- $labeller := printf "-labeller.%s.%s" .Release.Namespace .Release.Name -}}
{{- range $role, $owner := $roles -}}
{{- if and (hasSuffix $labeller $role) (eq $owner (include "kata-deploy.release" $)) -}}
{{- $name := trimSuffix $labeller $role -}}
{{- $node := (lookup "v1" "ConfigMap" $.Release.Namespace (printf "%s-node" $name)).data | default dict -}}
{{- $values := get $node "values.yaml" | default "{}" | fromYaml -}}
{{- $mode := ternary "job" "daemonset" (hasKey $roles (printf "%s%s" $name $dispatcher)) -}}
{{- $suffix := $name | trimPrefix "kata-deploy" | trimPrefix "-" -}}
{{- $kept = dict "deploymentMode" $mode "multiInstallSuffix" $suffix -}}
{{- if $node -}}
{{- $_ := set $kept "installationPrefix" (clean (($values.env).installationPrefix | default "/")) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $kept -}}
{{- end -}}
