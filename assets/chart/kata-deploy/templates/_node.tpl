{{- /* What the nodes get of the values; all that is made of it is made there, by kata-node. */ -}}

{{- define "kata-deploy.node.values" -}}
{{- $values := dict -}}
{{- range $key := list "containerd" "customRuntimes" "debug" "defaultShim" "devkit" "env" "snapshotter" "startupTaints" -}}
{{- $value := index $.Values $key -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $_ := set $values $key $value -}}
{{- end -}}
{{- end -}}
{{- $_ := set $values "k8sDistribution" (include "kata-deploy.distribution" .) -}}
{{- $shims := dict "disableAll" ((.Values.shims).disableAll | default false) -}}
{{- range $name, $shim := .Values.shims -}}
{{- if kindIs "map" $shim -}}
{{- /* RuntimeClasses are the chart's, and no reason to work on a node. */ -}}
{{- $_ := set $shims $name (omit $shim "runtimeClass") -}}
{{- end -}}
{{- end -}}
{{- if eq (len $shims) 1 -}}
{{- /* kata-node takes a file without any shim for that of a person who wants the default. */ -}}
{{- $_ := set $shims "disableAll" true -}}
{{- end -}}
{{- $_ := set $values "shims" $shims -}}
{{- toYaml $values -}}
{{- end -}}

{{- define "kata-deploy.node.configMap" -}}
{{ include "kata-deploy.fullname" . }}-node
{{- end -}}
