{{- /* The part of the values that kata-node reads on the node. It interprets them; the chart passes them on. */ -}}

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
{{- /* RuntimeClasses are created by the chart. A change of them must not change the node. */ -}}
{{- $_ := set $shims $name (omit $shim "runtimeClass") -}}
{{- end -}}
{{- end -}}
{{- if eq (len $shims) 1 -}}
{{- /* If the file names no shim, kata-node installs the default shim. */ -}}
{{- $_ := set $shims "disableAll" true -}}
{{- end -}}
{{- $_ := set $values "shims" $shims -}}
{{- toYaml $values -}}
{{- end -}}

{{- define "kata-deploy.node.configMap" -}}
{{ include "kata-deploy.fullname" . }}-node
{{- end -}}
