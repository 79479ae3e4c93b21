{{- /*
The selection of nodes, and node selectors and tolerations of pods. Both modes select the same nodes: in a DaemonSet the
scheduler judges the labels and the affinity, with node Jobs the dispatcher does.
*/ -}}

{{- /* The selection, in the format of the dispatcher's configuration. Takes (list $ "job" or "job.cleanup"). */ -}}
{{- define "kata-deploy.selection" -}}
{{- $root := index . 0 -}}
{{- $where := index . 1 -}}
{{- $refused := len ($root.Values.refusals | default list) -}}
{{- $job := $root.Values.job | default dict -}}
{{- $chosen := ternary $job ($job.cleanup | default dict) (eq $where "job") -}}
{{- $labels := include "kata-deploy.labelTexts" $chosen.nodeSelector | fromYaml -}}
{{- $expressions := $chosen.nodeSelectorExpressions | default list -}}
{{- $terms := list -}}
{{- if eq $where "job" -}}
{{- $shared := include "kata-deploy.labelTexts" $root.Values.nodeSelector | fromYaml -}}
{{- $labels = merge (dict) $labels $shared -}}
{{- range $label, $value := $shared -}}
{{- if ne $value (get $labels $label) -}}
{{- include "kata-deploy.refuse" (list $root (printf "job.nodeSelector: requires %s=%s, but nodeSelector requires %s=%s, and no node has both; correct one of them" $label (get $labels $label) $label $value)) -}}
{{- end -}}
{{- end -}}
{{- $terms = include "kata-deploy.installTerms" $root | fromJsonArray -}}
{{- /* The default excludes control-plane nodes only while nothing else says whether they are selected. */ -}}
{{- if and (eq (toJson $expressions) (include "kata-deploy.workersOnly" .)) (include "kata-deploy.namesControlPlane" (list $labels $terms $root.Values.tolerations)) -}}
{{- $expressions = list -}}
{{- end -}}
{{- else -}}
{{- $terms = include "kata-deploy.requiredTerms" (list $root $chosen.nodeAffinity "job.cleanup.nodeAffinity") | fromJsonArray -}}
{{- if and $terms (eq (toJson $expressions) (include "kata-deploy.nodesWithKata" .)) -}}
{{- $expressions = list -}}
{{- end -}}
{{- end -}}
{{- if $chosen.nodes -}}
{{- dict "nodes" $chosen.nodes | toJson -}}
{{- else -}}
{{- $notWindows := dict "key" "kubernetes.io/os" "operator" "NotIn" "values" (list "windows") -}}
{{- $expressions = append $expressions $notWindows -}}
{{- $selector := include "kata-deploy.labelSelector" (list $root $labels $expressions (printf "%s.nodeSelectorExpressions" $where)) -}}
{{- $keys := ternary "nodeSelector, affinity, job.nodeSelector or job.nodeSelectorExpressions" "one of the keys below job.cleanup" (eq $where "job") -}}
{{- include "kata-deploy.refuseEmptySelection" (list $root $labels $expressions $terms $keys $refused) -}}
{{- $selection := dict "labelSelector" $selector -}}
{{- if $terms -}}
{{- $_ := set $selection "nodeSelectorTerms" $terms -}}
{{- end -}}
{{- toJson $selection -}}
{{- end -}}
{{- end -}}

{{- /* The default of `job.nodeSelectorExpressions`. */ -}}
{{- define "kata-deploy.workersOnly" -}}
{{- list (dict "key" "node-role.kubernetes.io/control-plane" "operator" "DoesNotExist") (dict "key" "node-role.kubernetes.io/master" "operator" "DoesNotExist") | toJson -}}
{{- end -}}

{{- /* The default of `job.cleanup.nodeSelectorExpressions`. */ -}}
{{- define "kata-deploy.nodesWithKata" -}}
{{- list (dict "key" "katacontainers.io/kata-runtime" "operator" "Exists") | toJson -}}
{{- end -}}

{{- /* `true` if labels, terms or tolerations name the control plane; else empty. Takes (list $labels $terms $tolerations). */ -}}
{{- define "kata-deploy.namesControlPlane" -}}
{{- $keys := keys (index . 0) -}}
{{- range index . 1 -}}
{{- range .matchExpressions -}}
{{- $keys = append $keys .key -}}
{{- end -}}
{{- end -}}
{{- range index . 2 -}}
{{- $keys = append $keys (.key | default "") -}}
{{- end -}}
{{- if or (has "node-role.kubernetes.io/control-plane" $keys) (has "node-role.kubernetes.io/master" $keys) -}}true{{- end -}}
{{- end -}}

{{- /*
The terms of the node affinity for the nodes that get Kata, as a JSON list: those of the values, and with the release's
own node-feature-discovery those of virtualization. A node must match one of each.
*/ -}}
{{- define "kata-deploy.installTerms" -}}
{{- $given := include "kata-deploy.requiredTerms" (list . (.Values.affinity).nodeAffinity "affinity.nodeAffinity") | fromJsonArray -}}
{{- if not (index .Values "node-feature-discovery").enabled -}}
{{- toJson $given -}}
{{- else -}}
{{- $able := include "kata-deploy.virtualizationTerms" . | fromJsonArray -}}
{{- $both := list -}}
{{- range $one := $able -}}
{{- range $other := $given -}}
{{- $expressions := concat $one.matchExpressions ($other.matchExpressions | default list) -}}
{{- if or $other.matchExpressions $other.matchFields -}}
{{- $both = append $both (merge (dict "matchExpressions" $expressions) $other) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- ternary $both $able (gt (len $given) 0) | toJson -}}
{{- end -}}
{{- end -}}

{{- /* Terms for nodes with virtualization, by the labels of node-feature-discovery. It has such labels for amd64 only. */ -}}
{{- define "kata-deploy.virtualizationTerms" -}}
{{- $terms := list -}}
{{- range list "VMX" "SVM" -}}
{{- $feature := dict "key" (printf "feature.node.kubernetes.io/cpu-cpuid.%s" .) "operator" "In" "values" (list "true") -}}
{{- $arch := dict "key" "kubernetes.io/arch" "operator" "In" "values" (list "amd64") -}}
{{- $terms = append $terms (dict "matchExpressions" (list $feature $arch)) -}}
{{- end -}}
{{- $others := dict "key" "kubernetes.io/arch" "operator" "In" "values" (list "arm64" "ppc64le" "s390x") -}}
{{- append $terms (dict "matchExpressions" (list $others)) | toJson -}}
{{- end -}}

{{- /*
The required terms of a node affinity as a JSON list, with values as strings; an empty list if it requires nothing. Takes
(list $ $nodeAffinity "affinity.nodeAffinity").
*/ -}}
{{- define "kata-deploy.requiredTerms" -}}
{{- $root := index . 0 -}}
{{- $affinity := index . 1 | default dict -}}
{{- $where := printf "%s.requiredDuringSchedulingIgnoredDuringExecution" (index . 2) -}}
{{- $terms := list -}}
{{- $refused := false -}}
{{- $required := $affinity.requiredDuringSchedulingIgnoredDuringExecution -}}
{{- if not (kindIs "invalid" $required) -}}
{{- range $at, $term := $required.nodeSelectorTerms -}}
{{- $place := printf "%s.nodeSelectorTerms[%d]" $where $at -}}
{{- $clean := dict -}}
{{- range $kind := list "matchExpressions" "matchFields" -}}
{{- $requirements := list -}}
{{- range $index, $each := get $term $kind | default list -}}
{{- $requirement := include "kata-deploy.requirement" (list $root $each (printf "%s.%s[%d]" $place $kind $index) (ternary (list "In" "NotIn") (list "In" "NotIn" "Exists" "DoesNotExist" "Gt" "Lt") (eq $kind "matchFields"))) | fromJson -}}
{{- if $requirement.key -}}
{{- $requirements = append $requirements $requirement -}}
{{- else -}}
{{- $refused = true -}}
{{- end -}}
{{- end -}}
{{- if $requirements -}}
{{- $_ := set $clean $kind $requirements -}}
{{- end -}}
{{- end -}}
{{- $terms = append $terms $clean -}}
{{- end -}}
{{- if not (or $refused (without $terms (dict))) -}}
{{- include "kata-deploy.refuse" (list $root (printf "%s.nodeSelectorTerms: has no requirement, so no node matches; add a requirement, or remove requiredDuringSchedulingIgnoredDuringExecution to select every node" $where)) -}}
{{- end -}}
{{- end -}}
{{- toJson $terms -}}
{{- end -}}

{{- /*
One requirement as JSON, with values as strings; `{}` for one without a key. Takes
(list $ $requirement "its key" (list "operators")).
*/ -}}
{{- define "kata-deploy.requirement" -}}
{{- $root := index . 0 -}}
{{- $given := index . 1 -}}
{{- $where := index . 2 -}}
{{- $operators := index . 3 -}}
{{- $values := list -}}
{{- range $given.values -}}
{{- /* Helm reads each number as a fraction. */ -}}
{{- $whole := and (kindIs "float64" .) (eq (floor .) .) -}}
{{- $values = append $values (ternary (printf "%.0f" (float64 (ternary . 0 (kindIs "float64" .)))) (toString .) $whole) -}}
{{- end -}}
{{- $key := $given.key | default "" | toString -}}
{{- $operator := $given.operator | default "" | toString -}}
{{- if not $key -}}
{{- include "kata-deploy.refuse" (list $root (printf "%s.key: is missing; set it to the name of a label" $where)) -}}
{{- else if and (eq (len $operators) 2) (ne $key "metadata.name") -}}
{{- include "kata-deploy.refuse" (list $root (printf "%s.key: Kubernetes supports the field metadata.name only, not %s; write matchExpressions for labels" $where $key)) -}}
{{- else if not (has $operator $operators) -}}
{{- include "kata-deploy.refuse" (list $root (printf "%s.operator: %s is none of %s; set one of these" $where ($operator | default "nothing") (join ", " $operators))) -}}
{{- end -}}
{{- if or (not $key) (not (has $operator $operators)) -}}
{{- /* refused above */ -}}
{{- else if has $operator (list "In" "NotIn") -}}
{{- if not $values -}}
{{- include "kata-deploy.refuse" (list $root (printf "%s.values: %s needs at least one value for %s; add a value, or use Exists or DoesNotExist" $where $operator $key)) -}}
{{- end -}}
{{- else if has $operator (list "Gt" "Lt") -}}
{{- if not (and (eq (len $values) 1) (regexMatch "^[-+]?[0-9]+$" (first (append $values "")))) -}}
{{- include "kata-deploy.refuse" (list $root (printf "%s.values: %s needs one whole number for %s; write it in quotes" $where $operator $key)) -}}
{{- end -}}
{{- else if $values -}}
{{- include "kata-deploy.refuse" (list $root (printf "%s.values: %s takes no values for %s; remove the values, or use In or NotIn" $where $operator $key)) -}}
{{- end -}}
{{- $clean := dict -}}
{{- if $key -}}
{{- $clean = dict "key" $key "operator" $operator -}}
{{- end -}}
{{- if $values -}}
{{- $_ := set $clean "values" $values -}}
{{- end -}}
{{- toJson $clean -}}
{{- end -}}

{{- /* A label selector. Takes (list $ $labels $expressions "job.nodeSelectorExpressions"). */ -}}
{{- define "kata-deploy.labelSelector" -}}
{{- $root := index . 0 -}}
{{- $where := index . 3 -}}
{{- $parts := list -}}
{{- range $label, $value := index . 1 -}}
{{- $parts = append $parts (printf "%s=%s" $label $value) -}}
{{- end -}}
{{- range $at, $given := index . 2 -}}
{{- $each := include "kata-deploy.requirement" (list $root $given (printf "%s[%d]" $where $at) (list "In" "NotIn" "Exists" "DoesNotExist")) | fromJson -}}
{{- if $each.values -}}
{{- $parts = append $parts (printf "%s %s (%s)" $each.key (lower $each.operator) (join "," $each.values)) -}}
{{- else -}}
{{- $parts = append $parts (printf "%s%s" (ternary "!" "" (eq (toString $each.operator) "DoesNotExist")) ($each.key | default "")) -}}
{{- end -}}
{{- end -}}
{{- join "," $parts -}}
{{- end -}}

{{- /*
Refuses a selection that no node can match, unless a part of it was refused: it is not complete then. Takes
(list $ $labels $expressions $terms "the keys to correct" $count), with the number of refusals before this selection.
*/ -}}
{{- define "kata-deploy.refuseEmptySelection" -}}
{{- $root := index . 0 -}}
{{- $common := index . 2 -}}
{{- range $label, $value := index . 1 -}}
{{- $common = append $common (dict "key" $label "operator" "In" "values" (list $value)) -}}
{{- end -}}
{{- $possible := false -}}
{{- $why := "" -}}
{{- range index . 3 | default (list (dict "only" "the labels")) -}}
{{- if . -}}
{{- $found := include "kata-deploy.contradiction" (concat $common (.matchExpressions | default list) (.matchFields | default list)) -}}
{{- $why = $why | default $found -}}
{{- $possible = or $possible (not $found) -}}
{{- end -}}
{{- end -}}
{{- if and (not $possible) (eq (index . 5) (len ($root.Values.refusals | default list))) -}}
{{- include "kata-deploy.refuse" (list $root (printf "%s: no node can have %s; correct one of them" (index . 4) $why)) -}}
{{- end -}}
{{- end -}}

{{- /* The requirements on one key that no node can meet together, as text; else empty. Takes a list of requirements. */ -}}
{{- define "kata-deploy.contradiction" -}}
{{- $byKey := dict -}}
{{- range . -}}
{{- if and (kindIs "map" .) .key -}}
{{- $_ := set $byKey (toString .key) (append (get $byKey (toString .key) | default list) .) -}}
{{- end -}}
{{- end -}}
{{- $contradiction := "" -}}
{{- range $key, $all := $byKey -}}
{{- $present := false -}}
{{- $absent := false -}}
{{- $limited := false -}}
{{- $allowed := list -}}
{{- $denied := list -}}
{{- $least := "" -}}
{{- $most := "" -}}
{{- $texts := list -}}
{{- range $all -}}
{{- $values := .values | default list -}}
{{- $number := first (append $values "0") | int64 -}}
{{- $present = or $present (has .operator (list "In" "Exists" "Gt" "Lt")) -}}
{{- if eq .operator "DoesNotExist" -}}
{{- $absent = true -}}
{{- else if eq .operator "NotIn" -}}
{{- $denied = concat $denied $values -}}
{{- else if eq .operator "Gt" -}}
{{- $least = ternary (max (add1 $number) (int64 $least)) (add1 $number) (ne (toString $least) "") -}}
{{- else if eq .operator "Lt" -}}
{{- $most = ternary (min (sub $number 1) (int64 $most)) (sub $number 1) (ne (toString $most) "") -}}
{{- else if eq .operator "In" -}}
{{- $kept := list -}}
{{- range $values -}}
{{- if or (not $limited) (has . $allowed) -}}
{{- $kept = append $kept . -}}
{{- end -}}
{{- end -}}
{{- $allowed = $kept -}}
{{- $limited = true -}}
{{- end -}}
{{- $texts = append $texts (printf "%s %s%s" $key .operator (ternary (printf " (%s)" (join ", " $values)) "" (gt (len $values) 0))) -}}
{{- end -}}
{{- $left := list -}}
{{- range $allowed -}}
{{- $number := regexMatch "^[-+]?[0-9]+$" . -}}
{{- $low := and (ne (toString $least) "") (or (not $number) (lt (int64 .) (int64 $least))) -}}
{{- $high := and (ne (toString $most) "") (or (not $number) (gt (int64 .) (int64 $most))) -}}
{{- if not (or (has . $denied) $low $high) -}}
{{- $left = append $left . -}}
{{- end -}}
{{- end -}}
{{- $crossed := and (ne (toString $least) "") (ne (toString $most) "") (gt (int64 $least) (int64 $most)) -}}
{{- if or (and $present $absent) (and $limited (not $left)) $crossed -}}
{{- $contradiction = $contradiction | default (join " and " $texts) -}}
{{- end -}}
{{- end -}}
{{- $contradiction -}}
{{- end -}}

{{- /* The affinity of the DaemonSet's pods as JSON; `{}` without any. */ -}}
{{- define "kata-deploy.affinity" -}}
{{- $refused := len (.Values.refusals | default list) -}}
{{- $terms := include "kata-deploy.installTerms" . | fromJsonArray -}}
{{- $linux := list (dict "key" "kubernetes.io/os" "operator" "In" "values" (list "linux")) -}}
{{- include "kata-deploy.refuseEmptySelection" (list . (include "kata-deploy.labelTexts" .Values.nodeSelector | fromYaml) $linux $terms "nodeSelector or affinity" $refused) -}}
{{- $affinity := deepCopy (.Values.affinity | default dict) -}}
{{- if $terms -}}
{{- $required := dict "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms) -}}
{{- $affinity = mergeOverwrite $affinity (dict "nodeAffinity" $required) -}}
{{- end -}}
{{- toJson $affinity -}}
{{- end -}}

{{- /*
Labels with their values as text. `helm --set` makes a boolean or a number of `true` or `1`. A null counts as not set: with
it, a second values file takes a label out of the first. Takes a mapping, or nil.
*/ -}}
{{- define "kata-deploy.labelTexts" -}}
{{- range $label, $value := . }}
{{- if kindIs "invalid" $value }}{{ continue }}{{ end }}
{{ toJson $label }}: {{ ternary (printf "%.0f" (float64 (ternary $value 0 (kindIs "float64" $value)))) (toString $value) (kindIs "float64" $value) | toJson }}
{{- end -}}
{{- end -}}

{{- /* The node selector of a pod, with Linux added. Takes the node selector of the values. */ -}}
{{- define "kata-deploy.linuxNodeSelector" -}}
{{- mergeOverwrite (dict) (include "kata-deploy.labelTexts" . | fromYaml) (dict "kubernetes.io/os" "linux") | toYaml -}}
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
