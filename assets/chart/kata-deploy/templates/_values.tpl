{{- /*
What templates ask of the values. A key that is null, or whose section is, is as if it were not there.
*/ -}}

{{- define "kata-deploy.mode" -}}
{{- $mode := .Values.deploymentMode | default "daemonset" -}}
{{- if not (has $mode (list "daemonset" "job")) -}}
{{- fail (printf "deploymentMode: %v is neither daemonset nor job" $mode) -}}
{{- end -}}
{{- $mode -}}
{{- end -}}

{{- /* Not empty when nothing stays on the nodes. */ -}}
{{- define "kata-deploy.jobs" -}}
{{- if eq (include "kata-deploy.mode" .) "job" -}}true{{- end -}}
{{- end -}}

{{- /* An image; takes (list $image "job.dispatcherImage" "the tag without one"). */ -}}
{{- define "kata-deploy.image" -}}
{{- $image := index . 0 | default dict -}}
{{- $key := index . 1 -}}
{{- $reference := $image.reference | default "" | toString | trim -}}
{{- $tag := $image.tag | default "" | toString | trim -}}
{{- /* A colon behind the last slash: a registry may have a port. */ -}}
{{- $whole := or (contains "@" $reference) (contains ":" (splitList "/" $reference | last)) -}}
{{- if not $reference -}}
{{- fail (printf "%s.reference: is empty; name the image, as in quay.io/kata-containers/kata-deploy" $key) -}}
{{- else if and $whole $tag -}}
{{- fail (printf "%s.tag: %s has a tag or a digest already; take out the tag %s, or that" $key $reference $tag) -}}
{{- else if $whole -}}
{{- $reference -}}
{{- else if regexMatch "^sha256:" $tag -}}
{{- if not (regexMatch "^sha256:[0-9a-f]{64}$" $tag) -}}
{{- fail (printf "%s.tag: %s is no whole digest; it has 64 digits behind sha256:" $key $tag) -}}
{{- end -}}
{{- printf "%s@%s" $reference $tag -}}
{{- else -}}
{{- printf "%s:%s" $reference ($tag | default (index . 2)) -}}
{{- end -}}
{{- end -}}

{{- define "kata-deploy.logLevel" -}}
{{- $level := .Values.logLevel | default (ternary "debug" "info" (.Values.debug | default false)) -}}
{{- get (dict "warn" "warning" "trace" "debug") $level | default $level -}}
{{- end -}}
