{{- /*
The enabled shims of all architectures, as a JSON list in the order of their names. kata-node applies the same rule on a
node.
*/ -}}
{{- define "kata-deploy.enabledShims" -}}
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
The labels of a node that serves Kata of this installation. Every RuntimeClass selects them. The values cannot change that.
*/ -}}
{{- define "kata-deploy.servingLabels" -}}
{{ include "kata-deploy.sharedLabel" . }}: "true"
{{ include "kata-deploy.installationLabel" . }}: "true"
{{- end -}}

{{- /* The label that node-feature-discovery sets on nodes with a confidential technology. Takes `snp`, `tdx` or `se`. */ -}}
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

{{- /* `true` if node-feature-discovery is part of the release or its worker is in the cluster; else empty. */ -}}
{{- define "kata-deploy.hasNodeFeatureDiscovery" -}}
{{- $own := (index .Values "node-feature-discovery").enabled -}}
{{- if $own -}}true{{- end -}}
{{- range (lookup "apps/v1" "DaemonSet" "" "").items -}}
{{- if or (hasSuffix "node-feature-discovery-worker" .metadata.name) (hasSuffix "nfd-worker" .metadata.name) -}}
{{- if not $own -}}
true
{{- else if ne (include "kata-deploy.ownerOf" .) (include "kata-deploy.release" $) -}}
{{- fail (printf "node-feature-discovery.enabled: the cluster already has a worker, %s in the namespace %s, and two would remove each other's labels; set node-feature-discovery.enabled: false to use the existing one" .metadata.name .metadata.namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* One RuntimeClass. Takes a dict of root, name, handler, podFixed and nodeSelector. */ -}}
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
    {{- toYaml (mergeOverwrite (dict) (.nodeSelector | default dict) (include "kata-deploy.servingLabels" .root | fromYaml)) | nindent 4 }}
{{- end -}}

{{- /*
The RuntimeClass of a custom runtime: its manifest with the labels, the node selector and the overhead that the chart
adds. Takes (list $ "name" $runtime $table).
*/ -}}
{{- define "kata-deploy.customRuntimeClass" -}}
{{- $root := index . 0 -}}
{{- $where := printf "customRuntimes.runtimes.%s" (index . 1) -}}
{{- $runtime := index . 2 -}}
{{- $table := index . 3 -}}
{{- if not (hasKey $table ($runtime.baseConfig | default "")) -}}
{{- fail (printf "%s.baseConfig: %q is not a shim; use one of %s" $where ($runtime.baseConfig | default "") (keys $table | sortAlpha | join ", ")) -}}
{{- end -}}
{{- $class := $runtime.runtimeClass | default "" | fromYaml -}}
{{- if hasKey $class "Error" -}}
{{- fail (printf "%s.runtimeClass: is not valid YAML (%s); correct it" $where $class.Error) -}}
{{- else if or (ne (default "" $class.kind) "RuntimeClass") (ne (default "" $class.apiVersion) "node.k8s.io/v1") -}}
{{- fail (printf "%s.runtimeClass: is not a RuntimeClass; write a manifest of kind RuntimeClass and apiVersion node.k8s.io/v1" $where) -}}
{{- else if or (not ($class.metadata).name) (not $class.handler) -}}
{{- fail (printf "%s.runtimeClass: has no metadata.name or no handler; add both" $where) -}}
{{- end -}}
{{- if and (not ($class.overhead).podFixed) (ne false $runtime.inheritBaseOverhead) (ne false ($root.Values.runtimeClasses).overheadEnabled) -}}
{{- $_ := set $class "overhead" (dict "podFixed" (get $table $runtime.baseConfig).overhead) -}}
{{- end -}}
{{- $own := mergeOverwrite (dict) ($class.metadata.labels | default dict) (include "kata-deploy.labels" $root | fromYaml) -}}
{{- $_ := set $class.metadata "labels" $own -}}
{{- $scheduling := $class.scheduling | default dict -}}
{{- $_ := set $scheduling "nodeSelector" (mergeOverwrite (dict) ($scheduling.nodeSelector | default dict) (include "kata-deploy.servingLabels" $root | fromYaml)) -}}
{{- $_ := set $class "scheduling" $scheduling -}}
{{- toYaml $class -}}
{{- end -}}
