{{- /* The selection of nodes, and node selectors and tolerations of pods. */ -}}

{{- /* The selection, in the format of the dispatcher's configuration. Takes (list $ "job" or "job.cleanup"). */ -}}
{{- define "kata-deploy.selection" -}}
{{- $root := index . 0 -}}
{{- $where := index . 1 -}}
{{- $job := $root.Values.job | default dict -}}
{{- $chosen := ternary $job ($job.cleanup | default dict) (eq $where "job") -}}
{{- $labels := $chosen.nodeSelector | default dict -}}
{{- if eq $where "job" -}}
{{- $labels = merge (dict) $labels ($root.Values.nodeSelector | default dict) -}}
{{- range $label, $value := $root.Values.nodeSelector -}}
{{- if ne $value (get $labels $label) -}}
{{- include "kata-deploy.refuse" (list $root (printf "job.nodeSelector: requires %s=%s, but nodeSelector requires %s=%s, and no node has both; correct one of them" $label (get $labels $label) $label $value)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $chosen.nodes -}}
{{- dict "nodes" $chosen.nodes | toJson -}}
{{- else -}}
{{- $notWindows := dict "key" "kubernetes.io/os" "operator" "NotIn" "values" (list "windows") -}}
{{- $expressions := append ($chosen.nodeSelectorExpressions | default list) $notWindows -}}
{{- $selector := include "kata-deploy.labelSelector" (list $root $labels $expressions (printf "%s.nodeSelectorExpressions" $where)) -}}
{{- dict "labelSelector" $selector | toJson -}}
{{- end -}}
{{- end -}}

{{- /* A label selector. Takes (list $ $labels $expressions "job.nodeSelectorExpressions"). */ -}}
{{- define "kata-deploy.labelSelector" -}}
{{- $root := index . 0 -}}
{{- $key := index . 3 -}}
{{- $parts := list -}}
{{- range $label, $value := index . 1 -}}
{{- $parts = append $parts (printf "%s=%s" $label $value) -}}
{{- end -}}
{{- range $at, $each := index . 2 -}}
{{- $where := printf "%s[%d]" $key $at -}}
{{- $values := $each.values | default list -}}
{{- if not $each.key -}}
{{- include "kata-deploy.refuse" (list $root (printf "%s.key: is missing; set it to the name of a label" $where)) -}}
{{- end -}}
{{- if has $each.operator (list "In" "NotIn") -}}
{{- if not $values -}}
{{- include "kata-deploy.refuse" (list $root (printf "%s.values: %s needs at least one value for %s; add a value, or use Exists or DoesNotExist" $where $each.operator $each.key)) -}}
{{- end -}}
{{- $parts = append $parts (printf "%s %s (%s)" $each.key (lower $each.operator) (join "," $values)) -}}
{{- else if has $each.operator (list "Exists" "DoesNotExist") -}}
{{- if $values -}}
{{- include "kata-deploy.refuse" (list $root (printf "%s.values: %s takes no values for %s; remove the values, or use In or NotIn" $where $each.operator $each.key)) -}}
{{- end -}}
{{- $parts = append $parts (printf "%s%s" (ternary "!" "" (eq $each.operator "DoesNotExist")) $each.key) -}}
{{- else -}}
{{- include "kata-deploy.refuse" (list $root (printf "%s.operator: %v is none of In, NotIn, Exists, DoesNotExist; set one of these" $where $each.operator)) -}}
{{- end -}}
{{- end -}}
{{- join "," $parts -}}
{{- end -}}

{{- /* The node selector of a pod, with Linux added. Takes the node selector of the values. */ -}}
{{- define "kata-deploy.linuxNodeSelector" -}}
{{- mergeOverwrite (dict) (. | default dict) (dict "kubernetes.io/os" "linux") | toYaml -}}
{{- end -}}

{{- /* Tolerations of the pods that install: those of the values, and the startup taints. */ -}}
{{- define "kata-deploy.tolerations.install" -}}
{{- $tolerations := .Values.tolerations | default list -}}
{{- range include "kata-deploy.labeller.startupTaints" . | fromJsonArray -}}
{{- $parts := splitn ":" 2 . -}}
{{- $toleration := dict "key" $parts._0 "operator" "Exists" -}}
{{- if $parts._1 -}}
{{- $_ := set $toleration "effect" $parts._1 -}}
{{- end -}}
{{- $tolerations = append $tolerations $toleration -}}
{{- end -}}
{{- toJson $tolerations -}}
{{- end -}}

{{- /* The tolerations that Kubernetes adds to pods of a DaemonSet. Node Jobs need them, too. */ -}}
{{- define "kata-deploy.tolerations.nodeConditions" -}}
{{- $all := list -}}
{{- range list "not-ready:NoExecute" "unreachable:NoExecute" "disk-pressure:NoSchedule" "memory-pressure:NoSchedule" "pid-pressure:NoSchedule" "unschedulable:NoSchedule" -}}
{{- $parts := splitn ":" 2 . -}}
{{- $all = append $all (dict "key" (printf "node.kubernetes.io/%s" $parts._0) "operator" "Exists" "effect" $parts._1) -}}
{{- end -}}
{{- toJson $all -}}
{{- end -}}
