{{- /*
Names. Two installations in one cluster differ in env.multiInstallSuffix, in their release, or in both. In the
namespace of the release, the suffix makes names unique. Names of cluster-wide objects, and of objects in the namespace
`default`, contain the release as well: <name>.<namespace>.<release>. Namespaces and suffixes have no dots, so two
such names are never equal.
*/ -}}

{{- /* The suffix of this installation, or an empty string. */ -}}
{{- define "kata-deploy.suffix" -}}
{{- $suffix := (.Values.env).multiInstallSuffix | default "" | toString -}}
{{- if eq $suffix "default" -}}
{{- include "kata-deploy.refuse" (list . "env.multiInstallSuffix: `default` is the name of the installation without a suffix; choose another suffix") -}}
{{- else if and $suffix (not (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" $suffix)) -}}
{{- include "kata-deploy.refuse" (list . (printf "env.multiInstallSuffix: %q cannot be part of a name; use lower-case letters, digits and inner hyphens" $suffix)) -}}
{{- else if gt (len $suffix) 63 -}}
{{- include "kata-deploy.refuse" (list . (printf "env.multiInstallSuffix: %q has %d characters and the name of a label may have 63; choose a shorter suffix" $suffix (len $suffix))) -}}
{{- end -}}
{{- $suffix -}}
{{- end -}}

{{- /* The name of this installation, as in the installation label and in the receipt on the node. */ -}}
{{- define "kata-deploy.instance" -}}
{{- include "kata-deploy.suffix" . | default "default" -}}
{{- end -}}

{{- /* The prefix of all object names: kata-deploy, or kata-deploy-<suffix>; see argocd.yaml for the other one. */ -}}
{{- define "kata-deploy.fullname" -}}
{{- $suffix := include "kata-deploy.suffix" . -}}
{{- $prefix := ternary "kata-post-delete" "kata-deploy" (hasKey .Values "postDelete") -}}
{{- if $suffix -}}{{ $prefix }}-{{ $suffix }}{{- else -}}{{ $prefix }}{{- end -}}
{{- end -}}

{{- /* Name of an object outside the namespace of the release. Takes (list $ "part"). */ -}}
{{- define "kata-deploy.clusterName" -}}
{{- $root := index . 0 -}}
{{- printf "%s-%s.%s.%s" (include "kata-deploy.fullname" $root) (index . 1) $root.Release.Namespace $root.Release.Name -}}
{{- end -}}

{{- /* This release, in the format of `kata-deploy.ownerOf`. */ -}}
{{- define "kata-deploy.release" -}}
{{ .Release.Namespace }}/{{ .Release.Name }}
{{- end -}}

{{- /* The release that owns an object, as namespace/name; empty if helm has not created it. Takes the object. */ -}}
{{- define "kata-deploy.ownerOf" -}}
{{- $annotations := .metadata.annotations | default dict -}}
{{- if hasKey $annotations "meta.helm.sh/release-name" -}}
{{ get $annotations "meta.helm.sh/release-namespace" }}/{{ get $annotations "meta.helm.sh/release-name" }}
{{- end -}}
{{- end -}}

{{- /* Labels of every object. */ -}}
{{- define "kata-deploy.labels" -}}
app.kubernetes.io/name: kata-deploy
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /* The shared label: RuntimeClasses select it. `true` means that an installation serves Kata on the node. */ -}}
{{- define "kata-deploy.sharedLabel" -}}
katacontainers.io/kata-runtime
{{- end -}}

{{- /* The annotation of a Node that says who set the shared label: `kata-node` or `other`. */ -}}
{{- define "kata-deploy.setterAnnotation" -}}
katacontainers.io/kata-runtime-set-by
{{- end -}}

{{- /* The installation label: the state of this installation on a node. */ -}}
{{- define "kata-deploy.installationLabel" -}}
kata-deploy.katacontainers.io/{{ include "kata-deploy.instance" . }}
{{- end -}}

{{- /* The annotation with the record of the installation, and the labels with Kata's version and the outcome. */ -}}
{{- define "kata-deploy.statusAnnotation" -}}
status.{{ include "kata-deploy.installationLabel" . }}
{{- end -}}

{{- define "kata-deploy.versionLabel" -}}
version.{{ include "kata-deploy.installationLabel" . }}
{{- end -}}

{{- define "kata-deploy.outcomeLabel" -}}
outcome.{{ include "kata-deploy.installationLabel" . }}
{{- end -}}

{{- /* <fullname>-<part>, shortened to a number of characters. Takes (list $ "part" 40). */ -}}
{{- define "kata-deploy.shortName" -}}
{{- $root := index . 0 -}}
{{- $part := index . 1 -}}
{{- $limit := index . 2 -}}
{{- $base := include "kata-deploy.fullname" $root -}}
{{- $whole := printf "%s-%s" $base $part -}}
{{- if le (len $whole) $limit -}}
{{- $whole -}}
{{- else -}}
{{- /* A part of the checksum keeps two long suffixes with the same beginning apart. */ -}}
{{- printf "%s-%s-%s" ($base | trunc (sub $limit (add (len $part) 10) | int) | trimSuffix "-") (sha256sum $base | trunc 8) $part -}}
{{- end -}}
{{- end -}}

{{- /* Labels of the pods, which selectors use. Takes (list $ "component"). */ -}}
{{- define "kata-deploy.selectorLabels" -}}
app.kubernetes.io/name: kata-deploy
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}
