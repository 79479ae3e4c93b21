{{- /* Values that several templates use. A key or a section that is null counts as not set. */ -}}

{{- define "kata-deploy.mode" -}}
{{- .Values.deploymentMode | default "daemonset" -}}
{{- end -}}

{{- /*
The text of a named template, which one render makes once. Takes (list $ "name") for a template of the root, or
(list $ "name" "argument") for one that takes (list $ "argument"). All templates of a render share .Values.
*/ -}}
{{- define "kata-deploy.once" -}}
{{- $values := (index . 0).Values -}}
{{- $key := rest . | join " " -}}
{{- if not (hasKey $values "rendered") -}}
{{- $_ := set $values "rendered" dict -}}
{{- end -}}
{{- if not (hasKey $values.rendered $key) -}}
{{- $context := concat (list (index . 0)) (slice . 2) -}}
{{- $_ := set $values.rendered $key (include (index . 1) (ternary (index . 0) $context (eq 2 (len .)))) -}}
{{- end -}}
{{- get $values.rendered $key -}}
{{- end -}}

{{- /* `true` with deploymentMode: job; else empty. */ -}}
{{- define "kata-deploy.isJobMode" -}}
{{- if eq (include "kata-deploy.mode" .) "job" -}}true{{- end -}}
{{- end -}}

{{- /* An image. Takes (list $ $image "job.dispatcherImage" "default tag"). */ -}}
{{- define "kata-deploy.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 | default dict -}}
{{- $key := index . 2 -}}
{{- $reference := $image.reference | default "" | toString | trim -}}
{{- $tag := $image.tag | default "" | toString | trim -}}
{{- /* Only a colon after the last slash is a tag: a registry may have a port. */ -}}
{{- $whole := or (contains "@" $reference) (contains ":" (splitList "/" $reference | last)) -}}
{{- if not $reference -}}
{{- include "kata-deploy.refuse" (list $root (printf "%s.reference: is empty; set it to an image, for example quay.io/kata-containers/kata-deploy" $key)) -}}
{{- else if and $whole $tag -}}
{{- include "kata-deploy.refuse" (list $root (printf "%s.tag: the reference %s already has a tag or a digest; remove the tag %s, or remove it from the reference" $key $reference $tag)) -}}
{{- else if $whole -}}
{{- $reference -}}
{{- else if regexMatch "^sha256:" $tag -}}
{{- if not (regexMatch "^sha256:[0-9a-f]{64}$" $tag) -}}
{{- include "kata-deploy.refuse" (list $root (printf "%s.tag: %s is not a complete digest; write sha256: and 64 hexadecimal digits" $key $tag)) -}}
{{- end -}}
{{- printf "%s@%s" $reference $tag -}}
{{- else -}}
{{- printf "%s:%s" $reference ($tag | default (index . 3)) -}}
{{- end -}}
{{- end -}}

{{- define "kata-deploy.logLevel" -}}
{{- $level := .Values.logLevel | default (ternary "debug" "info" (.Values.debug | default false)) -}}
{{- get (dict "warn" "warning" "trace" "debug") $level | default $level -}}
{{- end -}}
