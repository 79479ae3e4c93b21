{{- /* Values that cannot work, other than those that are refused where they are used. */ -}}

{{- /* Fails for what is said in a way, or asks for a thing, that this chart does not know. */ -}}
{{- define "kata-deploy.refusals" -}}
{{- range $path, $remedy := .Files.Get "files/gone.json" | fromJson -}}
{{- if include "kata-deploy.at" (list $.Values $path) -}}
{{- fail (printf "%s: %s" $path $remedy) -}}
{{- end -}}
{{- end -}}
{{- if eq "integrity" (toString (.Values.snapshotter).erofsSnapshotterMode) -}}
{{- fail "snapshotter.erofsSnapshotterMode: integrity is a word of another chart; write erofsDmverity: true in its place" -}}
{{- end -}}
{{- $required := "nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution" -}}
{{- if and (include "kata-deploy.jobs" .) (not (.Values.job).nodes) (include "kata-deploy.at" (list .Values.affinity $required)) -}}
{{- fail (printf "affinity.%s: chooses no nodes in the mode job, and Kata would go on those it leaves out; say it in job.nodeSelectorExpressions in its place" $required) -}}
{{- end -}}
{{- range $shim := include "kata-deploy.shims.on" . | fromJsonArray -}}
{{- range $key := list "hypervisor.rootless" "kernelModulesImages" -}}
{{- if include "kata-deploy.at" (list (get $.Values.shims $shim) $key) -}}
{{- fail (printf "shims.%s.%s: is not in this release; take it out, or switch off the shim" $shim $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Not empty when something is said at a path; takes (list $values "env.debug"). */ -}}
{{- define "kata-deploy.at" -}}
{{- $found := index . 0 -}}
{{- range splitList "." (index . 1) -}}
{{- $found = index (kindIs "map" $found | ternary $found dict) . -}}
{{- end -}}
{{- if $found -}}true{{- end -}}
{{- end -}}
