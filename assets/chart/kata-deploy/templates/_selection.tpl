{{- /* Which nodes: those that get Kata, and those that pods are placed on. */ -}}

{{- /* The nodes an action is for, as the dispatcher takes it; takes (list $ "job" or "job.cleanup"). */ -}}
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
{{- fail (printf "job.nodeSelector: asks for %s=%s, and nodeSelector for %s=%s: no node has both" $label (get $labels $label) $label $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $chosen.nodes -}}
{{- dict "nodes" $chosen.nodes | toJson -}}
{{- else -}}
{{- $notWindows := dict "key" "kubernetes.io/os" "operator" "NotIn" "values" (list "windows") -}}
{{- $expressions := append ($chosen.nodeSelectorExpressions | default list) $notWindows -}}
{{- $selector := include "kata-deploy.labelSelector" (list $labels $expressions (printf "%s.nodeSelectorExpressions" $where)) -}}
{{- dict "labelSelector" $selector | toJson -}}
{{- end -}}
{{- end -}}

{{- /* A label selector of labels and expressions; takes (list $labels $expressions "job.nodeSelectorExpressions"). */ -}}
{{- define "kata-deploy.labelSelector" -}}
{{- $key := index . 2 -}}
{{- $parts := list -}}
{{- range $label, $value := index . 0 -}}
{{- $parts = append $parts (printf "%s=%s" $label $value) -}}
{{- end -}}
{{- range $at, $each := index . 1 -}}
{{- $where := printf "%s[%d]" $key $at -}}
{{- $values := $each.values | default list -}}
{{- if not $each.key -}}
{{- fail (printf "%s.key: is missing; name the label of the nodes" $where) -}}
{{- end -}}
{{- if has $each.operator (list "In" "NotIn") -}}
{{- if not $values -}}
{{- fail (printf "%s.values: %s needs at least one value for %s" $where $each.operator $each.key) -}}
{{- end -}}
{{- $parts = append $parts (printf "%s %s (%s)" $each.key (lower $each.operator) (join "," $values)) -}}
{{- else if has $each.operator (list "Exists" "DoesNotExist") -}}
{{- if $values -}}
{{- fail (printf "%s.values: %s takes no values for %s; take them out, or use In or NotIn" $where $each.operator $each.key) -}}
{{- end -}}
{{- $parts = append $parts (printf "%s%s" (ternary "!" "" (eq $each.operator "DoesNotExist")) $each.key) -}}
{{- else -}}
{{- fail (printf "%s.operator: %v is none of In, NotIn, Exists, DoesNotExist" $where $each.operator) -}}
{{- end -}}
{{- end -}}
{{- join "," $parts -}}
{{- end -}}

{{- /* Labels of nodes, for pods that the scheduler places, or a DaemonSet: none of this runs on Windows. */ -}}
{{- define "kata-deploy.linux" -}}
{{- mergeOverwrite (dict) (. | default dict) (dict "kubernetes.io/os" "linux") | toYaml -}}
{{- end -}}

{{- define "kata-deploy.tolerations.startup" -}}
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

{{- /* Rules for pods that a controller or the dispatcher puts on a node by name: what a DaemonSet's have. */ -}}
{{- define "kata-deploy.tolerations.conditions" -}}
{{- $all := list -}}
{{- range list "not-ready:NoExecute" "unreachable:NoExecute" "disk-pressure:NoSchedule" "memory-pressure:NoSchedule" "pid-pressure:NoSchedule" "unschedulable:NoSchedule" -}}
{{- $parts := splitn ":" 2 . -}}
{{- $all = append $all (dict "key" (printf "node.kubernetes.io/%s" $parts._0) "operator" "Exists" "effect" $parts._1) -}}
{{- end -}}
{{- toJson $all -}}
{{- end -}}
