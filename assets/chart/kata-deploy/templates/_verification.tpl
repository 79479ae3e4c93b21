{{- /* The verification pod, as a hook. */ -}}
{{- define "kata-deploy.verification" }}
{{- with (.Values.verification).pod }}
{{- $pod := fromYaml . }}
{{- $wrong := include "kata-deploy.notMapping" (list $pod "metadata" "metadata.annotations" "metadata.labels" "spec") }}
{{- if and (hasKey $pod "Error") (not (contains "cannot unmarshal" $pod.Error)) }}
{{- include "kata-deploy.refuse" (list $ (printf "verification.pod: is not valid YAML (%s); correct it" $pod.Error)) }}
{{- else if $wrong }}
{{- include "kata-deploy.refuse" (list $ (printf "verification.pod: %s is not a mapping; correct it" $wrong)) }}
{{- else if or (ne (toString $pod.kind) "Pod") (not ($pod.metadata).name) (not $pod.spec) }}
{{- include "kata-deploy.refuse" (list $ "verification.pod: is not the manifest of a Pod with metadata.name and a spec; pass a manifest with --set-file verification.pod=FILE") }}
{{- else if not $pod.spec.runtimeClassName }}
{{- include "kata-deploy.refuse" (list $ "verification.pod: has no runtimeClassName and would not run in Kata; set a RuntimeClass of this release, for example kata-qemu") }}
{{- else if has $pod.spec.restartPolicy (list nil "" "Always") }}
{{- include "kata-deploy.refuse" (list $ "verification.pod: would be restarted whenever it ends; set restartPolicy: Never") }}
{{- else }}
{{- /* helm waits until a Pod that is a hook has ended, and fails if the Pod has failed. */ -}}
{{- $hook := dict
  "helm.sh/hook" "post-install,post-upgrade,post-rollback"
  "helm.sh/hook-weight" "100"
  "helm.sh/hook-delete-policy" "before-hook-creation,hook-succeeded"
-}}
{{- $_ := set $pod.metadata "annotations" (mergeOverwrite (dict) ($pod.metadata.annotations | default dict) $hook) }}
{{- $_ := set $pod.metadata "labels" (mergeOverwrite (dict) ($pod.metadata.labels | default dict) (include "kata-deploy.labels" $ | fromYaml)) }}
{{- $_ := set $pod.metadata "namespace" ($.Values.verification.namespace | default "default") }}
{{- if not $pod.spec.activeDeadlineSeconds }}
{{- $_ := set $pod.spec "activeDeadlineSeconds" ($.Values.verification.timeout | default 180) }}
{{- end }}
{{- toYaml $pod }}
{{- end }}
{{- end }}
{{- end -}}
