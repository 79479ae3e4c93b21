{{- /* Refusals of values. */ -}}

{{- /*
Refuses a value. Takes (list $ "sentence"). While templates/checks/values.yaml collects the refusals, the sentence is added
to them. Otherwise the render fails at once.
*/ -}}
{{- define "kata-deploy.refuse" -}}
{{- $values := (index . 0).Values -}}
{{- if hasKey $values "refusals" -}}
{{- $_ := set $values "refusals" (append $values.refusals (index . 1)) -}}
{{- else -}}
{{- fail (index . 1) -}}
{{- end -}}
{{- end -}}

{{- /* Makes every check of the values, also those of templates that need the value. */ -}}
{{- define "kata-deploy.checkAll" -}}
{{- $job := .Values.job | default dict -}}
{{- $parts := list "checkValues" "checkConflicts" "state" "tolerations.install" "labelsBy" "admission.hasPolicies" "hasPayloadVolume" "userDropIn.digest" "runtimeClasses" "verification" -}}
{{- $images := dict "image" .Values.image -}}
{{- $dispatcher := false -}}
{{- if include "kata-deploy.nodeReference" . -}}
{{- $_ := include "kata-deploy.nodeImage" . -}}
{{- else if include "kata-deploy.isPublicPayload" . -}}
{{- include "kata-deploy.refuse" (list $ (printf "nodeImage.reference: is empty, and %s has the Kata files but not kata-node; %s" .Values.image.reference (include "kata-deploy.buildCommands" (list "nodeImage" "kata-node")))) -}}
{{- end -}}
{{- if include "kata-deploy.isJobMode" . -}}
{{- $parts = concat $parts (list "dispatcher.rollout" "nodeJobTTL") -}}
{{- $dispatcher = true -}}
{{- if and (include "kata-deploy.isPublicDispatcher" .) (not (include "kata-deploy.registry" .)) -}}
{{- include "kata-deploy.refuse" (list $ (printf "job.dispatcherImage.reference: %s is the dispatcher of the public chart, which cannot read the configuration of this chart; set job.dispatcherImage to the image of kata-deploy-job-dispatcher" $job.dispatcherImage.reference)) -}}
{{- end -}}
{{- range list "job" "job.cleanup" -}}
{{- $_ := include "kata-deploy.selection" (list $ .) -}}
{{- end -}}
{{- else -}}
{{- $parts = append $parts "affinity" -}}
{{- end -}}
{{- if or $dispatcher (include "kata-deploy.isArgo" .) -}}
{{- $_ := include "kata-deploy.dispatcherImage" . -}}
{{- end -}}
{{- if or $job.reconcileSchedule (not (include "kata-deploy.isJobMode" .)) -}}
{{- $images = set $images "kubectlImage" .Values.kubectlImage -}}
{{- end -}}
{{- if (.Values.monitor).enabled -}}
{{- $images = set $images "monitor.image" .Values.monitor.image -}}
{{- end -}}
{{- range $part := $parts -}}
{{- $_ := include "kata-deploy.once" (list $ (printf "kata-deploy.%s" $part)) -}}
{{- end -}}
{{- range $key, $image := $images -}}
{{- $_ := include "kata-deploy.image" (list $ $image $key "x") -}}
{{- end -}}
{{- range include "kata-deploy.runtimes" . | fromJsonArray -}}
{{- $_ := include "kata-deploy.hostPaths" (list $ .) -}}
{{- end -}}
{{- end -}}

{{- /* How to get an image of this project. Takes (list "key" "repository"). */ -}}
{{- define "kata-deploy.buildCommands" -}}
{{- printf "build and push the images with `scripts/image --push REGISTRY`, and set %s.reference to REGISTRY/%s, or image.registry to a registry with all images" (index . 0) (index . 1) -}}
{{- end -}}

{{- /* Refuses keys of other charts, and for features that this release does not have. */ -}}
{{- define "kata-deploy.checkValues" -}}
{{- range $path, $remedy := .Files.Get "files/gone.json" | fromJson -}}
{{- if include "kata-deploy.isSet" (list $.Values $path) -}}
{{- include "kata-deploy.refuse" (list $ (printf "%s: %s" $path $remedy)) -}}
{{- end -}}
{{- end -}}
{{- if eq "integrity" (toString (.Values.snapshotter).erofsSnapshotterMode) -}}
{{- include "kata-deploy.refuse" (list $ "snapshotter.erofsSnapshotterMode: integrity is a value of another chart; set snapshotter.erofsDmverity: true instead") -}}
{{- end -}}
{{- range $shim := include "kata-deploy.once" (list . "kata-deploy.enabledShims") | fromJsonArray -}}
{{- if include "kata-deploy.isSet" (list (get $.Values.shims $shim) "hypervisor.rootless") -}}
{{- include "kata-deploy.refuse" (list $ (printf "shims.%s.hypervisor.rootless: is not supported in this release; remove the key, or disable the shim" $shim)) -}}
{{- end -}}
{{- if include "kata-deploy.isSet" (list (get $.Values.shims $shim) "kernelModulesImages") -}}
{{- include "kata-deploy.refuse" (list $ (printf "shims.%s.kernelModulesImages: Kata 4.1 does not read it; attach a guest extension image with guest_extension_images in shims.%s.dropIn" $shim $shim)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /*
The first of some paths at which a manifest has something else than a mapping; empty if there is none. Takes
(list $manifest "metadata" "metadata.labels").
*/ -}}
{{- define "kata-deploy.notMapping" -}}
{{- $manifest := first . -}}
{{- range rest . -}}
{{- $found := $manifest -}}
{{- range splitList "." . -}}
{{- $found = index (kindIs "map" $found | ternary $found dict) . -}}
{{- end -}}
{{- if not (or (kindIs "invalid" $found) (kindIs "map" $found)) -}}
{{- . -}}
{{- break -}}
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
