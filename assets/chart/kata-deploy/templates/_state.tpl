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
{{- /* Once there, nydus has to be taken away as well when it is no longer asked for. */ -}}
{{- $nydus := or (eq "true" ($kept.nydus | default "")) (has "nydus" ((.Values.snapshotter).setup | default list)) -}}
{{- dict "deploymentMode" $mode "multiInstallSuffix" $suffix "nydus" (toString $nydus) | toJson -}}
{{- end -}}
