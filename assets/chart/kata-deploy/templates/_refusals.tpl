{{- /* Checks of values that no other template makes where it uses the value. */ -}}

{{- /* Fails for keys of other charts, and for features that this release does not have. */ -}}
{{- define "kata-deploy.checkValues" -}}
{{- range $path, $remedy := .Files.Get "files/gone.json" | fromJson -}}
{{- if include "kata-deploy.isSet" (list $.Values $path) -}}
{{- fail (printf "%s: %s" $path $remedy) -}}
{{- end -}}
{{- end -}}
{{- if eq "integrity" (toString (.Values.snapshotter).erofsSnapshotterMode) -}}
{{- fail "snapshotter.erofsSnapshotterMode: integrity is a value of another chart; set snapshotter.erofsDmverity: true instead" -}}
{{- end -}}
{{- range $shim := include "kata-deploy.enabledShims" . | fromJsonArray -}}
{{- range $key := list "hypervisor.rootless" "kernelModulesImages" -}}
{{- if include "kata-deploy.isSet" (list (get $.Values.shims $shim) $key) -}}
{{- fail (printf "shims.%s.%s: is not supported in this release; remove the key, or disable the shim" $shim $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* `true` if the values have a non-empty value at a path; else empty. Takes (list $values "env.debug"). */ -}}
{{- define "kata-deploy.isSet" -}}
{{- $found := index . 0 -}}
{{- range splitList "." (index . 1) -}}
{{- $found = index (kindIs "map" $found | ternary $found dict) . -}}
{{- end -}}
{{- if $found -}}true{{- end -}}
{{- end -}}
