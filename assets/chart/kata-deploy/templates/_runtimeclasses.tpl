{{- /* Which shims are on, in the order of their names: as kata-node decides it, but for all architectures. */ -}}
{{- define "kata-deploy.shims.on" -}}
{{- $table := .Files.Get "files/shims.yaml" | fromYaml -}}
{{- $disableAll := (.Values.shims).disableAll | default false -}}
{{- $on := list -}}
{{- range $name, $shim := .Values.shims -}}
{{- if and (kindIs "map" $shim) (hasKey $table $name) -}}
{{- $enabled := ternary (not $disableAll) $shim.enabled (kindIs "invalid" $shim.enabled) -}}
{{- $nowhere := and (kindIs "slice" $shim.supportedArches) (not $shim.supportedArches) -}}
{{- if and $enabled (not $nowhere) -}}
{{- $on = append $on $name -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $on -}}
{{- end -}}

{{- /*
The labels a node needs for the pods of any RuntimeClass: Kata is served there, by this installation.
Nothing in the values takes them away.
*/ -}}
{{- define "kata-deploy.gate" -}}
{{ include "kata-deploy.sharedLabel" . }}: "true"
{{ include "kata-deploy.mark" . }}: "true"
{{- end -}}

{{- /* The label by which node-feature-discovery tells that a node has what the guests of a shim need. */ -}}
{{- define "kata-deploy.teeLabels" -}}
{{- $labels := dict
  "snp" "amd.feature.node.kubernetes.io/snp"
  "tdx" "intel.feature.node.kubernetes.io/tdx"
  "se" "feature.node.kubernetes.io/cpu-security.se.enabled"
-}}
{{- with get $labels . }}
{{ . }}: "true"
{{- end }}
{{- end -}}

{{- /* Not empty where node-feature-discovery is part of the release, or its worker is in the cluster. */ -}}
{{- define "kata-deploy.nfd" -}}
{{- $own := (index .Values "node-feature-discovery").enabled -}}
{{- if $own -}}true{{- end -}}
{{- range (lookup "apps/v1" "DaemonSet" "" "").items -}}
{{- if or (hasSuffix "node-feature-discovery-worker" .metadata.name) (hasSuffix "nfd-worker" .metadata.name) -}}
{{- if not $own -}}
true
{{- else if ne (include "kata-deploy.owner" .) (include "kata-deploy.release" $) -}}
{{- fail (printf "node-feature-discovery.enabled: the cluster has one already, %s in the namespace %s, and two would take each other's labels away; set it to false: that one is used" .metadata.name .metadata.namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /*
One RuntimeClass; takes a dict of root, name, handler, and what it has: podFixed, nodeSelector.
*/ -}}
{{- define "kata-deploy.runtimeClass" }}
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata:
  name: {{ .name }}
  labels:
    {{- include "kata-deploy.labels" .root | nindent 4 }}
handler: {{ .handler }}
{{- with .podFixed }}
overhead:
  podFixed:
    {{- range $resource, $quantity := . }}
    {{ toJson $resource }}: {{ $quantity | toString | toJson }}
    {{- end }}
{{- end }}
scheduling:
  nodeSelector:
    {{- toYaml (mergeOverwrite (dict) (.nodeSelector | default dict) (include "kata-deploy.gate" .root | fromYaml)) | nindent 4 }}
{{- end -}}

{{- /* Manifest of a custom runtime, with what the chart adds to it; takes (list $ "name" $runtime $table). */ -}}
{{- define "kata-deploy.customRuntimeClass" -}}
{{- $root := index . 0 -}}
{{- $where := printf "customRuntimes.runtimes.%s" (index . 1) -}}
{{- $runtime := index . 2 -}}
{{- $table := index . 3 -}}
{{- if not (hasKey $table ($runtime.baseConfig | default "")) -}}
{{- fail (printf "%s.baseConfig: %q is no shim; known are %s" $where ($runtime.baseConfig | default "") (keys $table | sortAlpha | join ", ")) -}}
{{- end -}}
{{- $class := $runtime.runtimeClass | default "" | fromYaml -}}
{{- if hasKey $class "Error" -}}
{{- fail (printf "%s.runtimeClass: is no YAML: %s" $where $class.Error) -}}
{{- else if or (ne (default "" $class.kind) "RuntimeClass") (ne (default "" $class.apiVersion) "node.k8s.io/v1") -}}
{{- fail (printf "%s.runtimeClass: must be a manifest of kind RuntimeClass and apiVersion node.k8s.io/v1" $where) -}}
{{- else if or (not ($class.metadata).name) (not $class.handler) -}}
{{- fail (printf "%s.runtimeClass: needs metadata.name and a handler" $where) -}}
{{- end -}}
{{- if and (not ($class.overhead).podFixed) (ne false $runtime.inheritBaseOverhead) (ne false ($root.Values.runtimeClasses).overheadEnabled) -}}
{{- $_ := set $class "overhead" (dict "podFixed" (get $table $runtime.baseConfig).overhead) -}}
{{- end -}}
{{- $own := mergeOverwrite (dict) ($class.metadata.labels | default dict) (include "kata-deploy.labels" $root | fromYaml) -}}
{{- $_ := set $class.metadata "labels" $own -}}
{{- $scheduling := $class.scheduling | default dict -}}
{{- $_ := set $scheduling "nodeSelector" (mergeOverwrite (dict) ($scheduling.nodeSelector | default dict) (include "kata-deploy.gate" $root | fromYaml)) -}}
{{- $_ := set $class "scheduling" $scheduling -}}
{{- toYaml $class -}}
{{- end -}}
