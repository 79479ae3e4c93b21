{{- /* The check of `helm test`. */ -}}

{{- define "kata-deploy.check.name" -}}
{{ include "kata-deploy.fullname" . }}-check
{{- end -}}

{{- /* The nodes to check, as JSON: those that get Kata. kata_node/dispatcher/check.py reads it. */ -}}
{{- define "kata-deploy.check.nodes" -}}
{{- $selection := dict -}}
{{- if include "kata-deploy.isJobMode" . -}}
{{- $selection = include "kata-deploy.selection" (list . "job") | fromJson -}}
{{- else -}}
{{- $labels := include "kata-deploy.linuxNodeSelector" .Values.nodeSelector | fromYaml -}}
{{- $selection = dict "labelSelector" (include "kata-deploy.labelSelector" (list . $labels list "nodeSelector")) -}}
{{- with include "kata-deploy.installTerms" . | fromJsonArray -}}
{{- $_ := set $selection "nodeSelectorTerms" . -}}
{{- end -}}
{{- end -}}
{{- $tolerations := concat (include "kata-deploy.tolerations.install" . | fromJsonArray) (include "kata-deploy.tolerations.nodeConditions" . | fromJsonArray) -}}
{{- dict "mark" (include "kata-deploy.installationLabel" .) "namespace" .Release.Namespace "stateConfigMap" (include "kata-deploy.state.name" .) "selection" $selection "tolerations" $tolerations | toJson -}}
{{- end -}}
