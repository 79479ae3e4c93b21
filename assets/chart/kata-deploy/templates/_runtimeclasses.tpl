{{- /*
The enabled shims of all architectures, as a JSON list in the order of their names. kata-node applies the same rule on a
node.
*/ -}}
{{- define "kata-deploy.enabledShims" -}}
{{- $table := .Files.Get "files/shims.yaml" | fromYaml -}}
{{- $disableAll := (.Values.shims).disableAll | default false -}}
{{- $on := list -}}
{{- range $name, $shim := .Values.shims -}}
{{- $entry := get $table $name -}}
{{- if and (kindIs "map" $shim) $entry -}}
{{- $enabled := ternary (not (or $disableAll $entry.off)) $shim.enabled (kindIs "invalid" $shim.enabled) -}}
{{- if and $enabled (include "kata-deploy.runsOn" (list $shim $entry.arches)) -}}
{{- $on = append $on $name -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $on -}}
{{- end -}}

{{- /* `true` if supportedArches of a shim allows one of some architectures; else empty. Takes (list $shim $arches). */ -}}
{{- define "kata-deploy.runsOn" -}}
{{- $allowed := (index . 0).supportedArches -}}
{{- $found := false -}}
{{- range $arch := index . 1 -}}
{{- $found = or $found (not (kindIs "slice" $allowed)) (has $arch $allowed) -}}
{{- end -}}
{{- if $found -}}true{{- end -}}
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

{{- /* The resource of Nodes that one confidential guest uses up. Takes `snp`, `tdx` or another text, which has none. */ -}}
{{- define "kata-deploy.teeKey" -}}
{{- get (dict "snp" "sev-snp.amd.com/esids" "tdx" "tdx.intel.com/keys") . -}}
{{- end -}}

{{- /* `true` if confidential pods book keys, which the NodeFeatureRule advertises; else empty. */ -}}
{{- define "kata-deploy.booksKeys" -}}
{{- $create := toString ((.Values.nodeFeatureRules).create | default false) -}}
{{- if eq $create "true" -}}
true
{{- else if eq $create "auto" -}}
{{- if .Capabilities.APIVersions.Has "nfd.k8s-sigs.io/v1alpha1/NodeFeatureRule" -}}
true
{{- else -}}
{{- include "kata-deploy.once" (list . "kata-deploy.hasNodeFeatureDiscovery") -}}
{{- end -}}
{{- end -}}
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
{{- include "kata-deploy.refuse" (list $ (printf "node-feature-discovery.enabled: the cluster already has a worker, %s in the namespace %s, and two would remove each other's labels; set node-feature-discovery.enabled: false to use the existing one" .metadata.name .metadata.namespace)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /*
The release of Kata in the image with the payload; empty if the values do not tell it, because the image has a digest and
no tag.
*/ -}}
{{- define "kata-deploy.kataRelease" -}}
{{- $image := include "kata-deploy.payloadImage" . | splitList "@" | first | splitList "/" | last -}}
{{- (.Values.image).kataVersion | default (contains ":" $image | ternary (splitList ":" $image | last) "") -}}
{{- end -}}

{{- define "kata-deploy.kataVersion" -}}
{{- with include "kata-deploy.kataRelease" . -}}
katacontainers.io/kata-version: {{ quote . }}
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
  {{- with include "kata-deploy.kataVersion" .root }}
  annotations:
    {{- . | nindent 4 }}
  {{- end }}
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
    {{- toYaml (mergeOverwrite (dict) (include "kata-deploy.labelTexts" .nodeSelector | fromYaml) (include "kata-deploy.servingLabels" .root | fromYaml)) | nindent 4 }}
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
{{- $class := $runtime.runtimeClass | default "" | fromYaml -}}
{{- $base := get $table ($runtime.baseConfig | default "") -}}
{{- $wrong := include "kata-deploy.notMapping" (list $class "metadata" "metadata.annotations" "metadata.labels" "overhead" "overhead.podFixed" "scheduling" "scheduling.nodeSelector") -}}
{{- if not $base -}}
{{- $base = dict "tee" "" "overhead" dict -}}
{{- include "kata-deploy.refuse" (list $root (printf "%s.baseConfig: %q is not a shim; use one of %s" $where ($runtime.baseConfig | default "") (keys $table | sortAlpha | join ", "))) -}}
{{- end -}}
{{- if and (hasKey $class "Error") (not (contains "cannot unmarshal" $class.Error)) -}}
{{- include "kata-deploy.refuse" (list $root (printf "%s.runtimeClass: is not valid YAML (%s); correct it" $where $class.Error)) -}}
{{- else if or (ne (toString $class.kind) "RuntimeClass") (ne (toString $class.apiVersion) "node.k8s.io/v1") -}}
{{- include "kata-deploy.refuse" (list $root (printf "%s.runtimeClass: is not a RuntimeClass; write a manifest of kind RuntimeClass and apiVersion node.k8s.io/v1" $where)) -}}
{{- else if $wrong -}}
{{- include "kata-deploy.refuse" (list $root (printf "%s.runtimeClass: %s is not a mapping; correct it" $where $wrong)) -}}
{{- else if not (and (($class.metadata).name | default 0 | kindIs "string") ($class.handler | default 0 | kindIs "string")) -}}
{{- include "kata-deploy.refuse" (list $root (printf "%s.runtimeClass: has no metadata.name or no handler; add both, and put a number in quotes" $where)) -}}
{{- else -}}
{{- if and (not ($class.overhead).podFixed) (ne false $runtime.inheritBaseOverhead) (ne false ($root.Values.runtimeClasses).overheadEnabled) -}}
{{- $podFixed := deepCopy $base.overhead -}}
{{- if and (include "kata-deploy.teeKey" $base.tee) (include "kata-deploy.once" (list $root "kata-deploy.booksKeys")) -}}
{{- $_ := set $podFixed (include "kata-deploy.teeKey" $base.tee) "1" -}}
{{- end -}}
{{- $_ := set $class "overhead" (dict "podFixed" $podFixed) -}}
{{- end -}}
{{- $own := mergeOverwrite (dict) ($class.metadata.labels | default dict) (include "kata-deploy.labels" $root | fromYaml) -}}
{{- $_ := set $class.metadata "labels" $own -}}
{{- with mergeOverwrite (dict) ($class.metadata.annotations | default dict) (include "kata-deploy.kataVersion" $root | fromYaml) -}}
{{- $_ := set $class.metadata "annotations" . -}}
{{- end -}}
{{- $scheduling := $class.scheduling | default dict -}}
{{- $_ := set $scheduling "nodeSelector" (mergeOverwrite (dict) ($scheduling.nodeSelector | default dict) (include "kata-deploy.servingLabels" $root | fromYaml)) -}}
{{- $_ := set $class "scheduling" $scheduling -}}
{{- toYaml $class -}}
{{- end -}}
{{- end -}}

{{- /* All RuntimeClasses. */ -}}
{{- define "kata-deploy.runtimeClasses" }}
{{- if ne false (.Values.runtimeClasses).enabled }}
{{- $table := .Files.Get "files/shims.yaml" | fromYaml }}
{{- $classes := .Values.runtimeClasses | default dict }}
{{- $suffix := include "kata-deploy.suffix" . }}
{{- $on := include "kata-deploy.once" (list . "kata-deploy.enabledShims") | fromJsonArray }}
{{- $names := dict }}
{{- $default := "" }}
{{- if and $classes.createDefault (not $suffix) }}
{{- range $arch := list "ppc64le" "s390x" "arm64" "amd64" }}
{{- $shim := get ($.Values.defaultShim | default dict) $arch | default "" }}
{{- if has $shim $on }}
{{- $default = $shim }}
{{- end }}
{{- end }}
{{- if not $default }}
{{- include "kata-deploy.refuse" (list $ "runtimeClasses.createDefault: no shim in defaultShim is enabled; enable one of them, or set defaultShim to an enabled shim") }}
{{- end }}
{{- end }}
{{- range $shim := $on }}
{{- $entry := get $table $shim }}
{{- $own := (get $.Values.shims $shim).runtimeClass | default dict }}
{{- $podFixed := dict }}
{{- $overhead := ternary (ne false $classes.overheadEnabled) $own.overheadEnabled (kindIs "invalid" $own.overheadEnabled) }}
{{- if $overhead }}
{{- $podFixed = mergeOverwrite (dict) $entry.overhead ($own.overhead | default dict) }}
{{- end }}
{{- with include "kata-deploy.teeKey" $entry.tee }}
{{- if include "kata-deploy.once" (list $ "kata-deploy.booksKeys") }}
{{- $podFixed = mergeOverwrite (dict . 1) $podFixed }}
{{- end }}
{{- end }}
{{- $nodeSelector := $own.nodeSelector | default dict }}
{{- if and $entry.tee (not $nodeSelector) }}
{{- /* Asked only if needed, because helm needs the right to list DaemonSets for it. */ -}}
{{- if include "kata-deploy.once" (list $ "kata-deploy.hasNodeFeatureDiscovery") }}
{{- $nodeSelector = include "kata-deploy.teeLabels" $entry.tee | fromYaml }}
{{- end }}
{{- end }}
{{- $handlers := list (printf "kata-%s" $shim) }}
{{- if $.Values.debug }}
{{- $handlers = append $handlers (printf "kata-%s-debug" $shim) }}
{{- if and $.Values.devkit (include "kata-deploy.runsOn" (list (get $.Values.shims $shim) $entry.devkit)) }}
{{- $handlers = append $handlers (printf "kata-%s-devkit" $shim) }}
{{- end }}
{{- end }}
{{- range $handler := $handlers }}
{{- if $suffix }}
{{- $handler = printf "%s-%s" $handler $suffix }}
{{- end }}
{{- if gt (len $handler) 63 }}
{{- include "kata-deploy.refuse" (list $ (printf "env.multiInstallSuffix: the handler %s has %d characters and Kubernetes allows 63; choose a shorter suffix, or disable shims.%s" $handler (len $handler) $shim)) }}
{{- end }}
{{- if hasKey $names $handler }}
{{- include "kata-deploy.refuse" (list $ (printf "runtimeClasses.defaultName: %s is the RuntimeClass of shims.%s; choose another name" $handler $shim)) }}
{{- end }}
{{- $_ := set $names $handler (printf "shims.%s" $shim) }}
{{- include "kata-deploy.runtimeClass" (dict "root" $ "name" $handler "handler" $handler "podFixed" $podFixed "nodeSelector" $nodeSelector) }}
{{- end }}
{{- if eq $shim $default }}
{{- $name := $classes.defaultName | default "kata" }}
{{- if hasKey $names $name }}
{{- include "kata-deploy.refuse" (list $ (printf "runtimeClasses.defaultName: %s is the RuntimeClass of %s; choose another name" $name (get $names $name))) }}
{{- end }}
{{- $_ := set $names $name "runtimeClasses.defaultName" }}
{{- include "kata-deploy.runtimeClass" (dict "root" $ "name" $name "handler" (printf "kata-%s" $shim) "podFixed" $podFixed "nodeSelector" $nodeSelector) }}
{{- end }}
{{- end }}
{{- if (.Values.customRuntimes).enabled }}
{{- range $name, $runtime := .Values.customRuntimes.runtimes }}
{{- if kindIs "invalid" $runtime }}{{ continue }}{{ end }}
{{- $manifest := include "kata-deploy.customRuntimeClass" (list $ $name $runtime $table) }}
{{- $called := (($manifest | fromYaml).metadata).name | default "" }}
{{- if hasKey $names $called }}
{{- include "kata-deploy.refuse" (list $ (printf "customRuntimes.runtimes.%s.runtimeClass: %s is the RuntimeClass of %s; choose another name" $name $called (get $names $called))) }}
{{- end }}
{{- $_ := set $names $called (printf "customRuntimes.runtimes.%s" $name) }}
---
{{ $manifest }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
