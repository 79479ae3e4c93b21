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

{{- /* image.registry of the values, without a slash at its end. */ -}}
{{- define "kata-deploy.registry" -}}
{{- (.Values.image).registry | default "" | trimSuffix "/" -}}
{{- end -}}

{{- /*
A reference with the registry of image.registry, if that is set. As for Docker, the first part of a reference is a registry if
it has a dot or a port, or is localhost. Takes (list $ "reference").
*/ -}}
{{- define "kata-deploy.withRegistry" -}}
{{- $reference := index . 1 -}}
{{- $registry := include "kata-deploy.registry" (index . 0) -}}
{{- if and $registry $reference -}}
{{- printf "%s/%s" $registry (regexReplaceAll "^([^/]*[.:][^/]*|localhost)/" $reference "") -}}
{{- else -}}
{{- $reference -}}
{{- end -}}
{{- end -}}

{{- /* An image. Takes (list $ $image "job.dispatcherImage" "default tag"). */ -}}
{{- define "kata-deploy.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 | default dict -}}
{{- $key := index . 2 -}}
{{- $reference := include "kata-deploy.withRegistry" (list $root ($image.reference | default "" | toString | trim)) -}}
{{- $tag := $image.tag | default "" | toString | trim -}}
{{- /* Only a colon after the last slash is a tag: a registry may have a port. */ -}}
{{- $whole := or (contains "@" $reference) (contains ":" (splitList "/" $reference | last)) -}}
{{- if and (not $reference) (eq $key "job.dispatcherImage") -}}
{{- include "kata-deploy.refuse" (list $root (printf "job.dispatcherImage.reference: is empty; %s" (include "kata-deploy.buildCommands" (list $key "kata-deploy-job-dispatcher")))) -}}
{{- else if not $reference -}}
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

{{- /* The release of Kata that this chart was tested with. */ -}}
{{- define "kata-deploy.testedKata" -}}
{{- index .Chart.Annotations "katacontainers.io/kata-version" -}}
{{- end -}}

{{- /* `true` if `image` is that of the public project, which has the Kata files but not kata-node. */ -}}
{{- define "kata-deploy.isPublicPayload" -}}
{{- if regexMatch "(^|/)kata-containers/kata-deploy(-ci)?([:@]|$)" ((.Values.image).reference | default "" | toString | trim) -}}true{{- end -}}
{{- end -}}

{{- /* `true` if `job.dispatcherImage` is the dispatcher of the public chart, which cannot read our configuration. */ -}}
{{- define "kata-deploy.isPublicDispatcher" -}}
{{- if regexMatch "(^|/)k8s-job-dispatcher([:@]|$)" (((.Values.job).dispatcherImage).reference | default "" | toString | trim) -}}true{{- end -}}
{{- end -}}

{{- /*
The image with the payload. If it is not the image of kata-node as well, its default tag is the release of Kata that this
chart was tested with.
*/ -}}
{{- define "kata-deploy.payloadImage" -}}
{{- $own := include "kata-deploy.nodeReference" . -}}
{{- $tag := ternary (include "kata-deploy.testedKata" .) .Chart.AppVersion (ne $own "") -}}
{{- include "kata-deploy.image" (list . .Values.image "image" $tag) -}}
{{- end -}}

{{- /*
The reference of the image of kata-node; empty if that is `image`, which then has both. With image.registry it is not needed
in the values.
*/ -}}
{{- define "kata-deploy.nodeReference" -}}
{{- $ours := and (include "kata-deploy.registry" .) (include "kata-deploy.isPublicPayload" .) -}}
{{- (.Values.nodeImage).reference | default (ternary "kata-node" "" (not (empty $ours))) -}}
{{- end -}}

{{- /* The image of the dispatcher. With image.registry its reference is not needed in the values. */ -}}
{{- define "kata-deploy.dispatcherImage" -}}
{{- $image := (.Values.job).dispatcherImage | default dict -}}
{{- if and (include "kata-deploy.registry" .) (or (not $image.reference) (include "kata-deploy.isPublicDispatcher" .)) -}}
{{- $tag := ternary "" $image.tag (eq "true" (include "kata-deploy.isPublicDispatcher" .)) -}}
{{- $image = dict "reference" "kata-deploy-job-dispatcher" "tag" $tag -}}
{{- end -}}
{{- include "kata-deploy.image" (list . $image "job.dispatcherImage" .Chart.AppVersion) -}}
{{- end -}}

{{- /* The image of kata-node, which runs on the nodes. */ -}}
{{- define "kata-deploy.nodeImage" -}}
{{- with include "kata-deploy.nodeReference" . -}}
{{- include "kata-deploy.image" (list $ (dict "reference" . "tag" ($.Values.nodeImage).tag) "nodeImage" $.Chart.AppVersion) -}}
{{- else -}}
{{- include "kata-deploy.payloadImage" . -}}
{{- end -}}
{{- end -}}

{{- /*
`true` if the pods mount `image` as a volume, with the payload; else empty. The API server has the feature on by default
from Kubernetes 1.35. Before, it drops the field: it refuses the pods, or before 1.31 they have an empty volume.
*/ -}}
{{- define "kata-deploy.hasPayloadVolume" -}}
{{- $wanted := (.Values.image).volume | default "auto" -}}
{{- if and (include "kata-deploy.nodeReference" .) (ne $wanted "never") -}}
{{- if and (eq $wanted "auto") (semverCompare "<1.35.0-0" .Capabilities.KubeVersion.Version) -}}
{{- include "kata-deploy.refuse" (list . (printf "nodeImage: Kubernetes %s does not mount images as volumes by default; build one image of both with `scripts/image --payload-image`, name it in nodeImage and set image.volume: never; if the feature gate ImageVolume is on, set image.volume: always; with `helm template`, name the version of the cluster with --kube-version" .Capabilities.KubeVersion.Version)) -}}
{{- end -}}
true
{{- end -}}
{{- end -}}

{{- define "kata-deploy.logLevel" -}}
{{- $level := .Values.logLevel | default (ternary "debug" "info" (.Values.debug | default false)) -}}
{{- get (dict "warn" "warning" "trace" "debug") $level | default $level -}}
{{- end -}}
