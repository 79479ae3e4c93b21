{{- /*
Names. Two installations in one cluster differ in env.multiInstallSuffix, in their release, or in both.
Within a namespace the suffix tells their objects apart; what belongs to no namespace, or to one that
all installations share, is told apart by the release as well: <name>.<namespace>.<release>. Neither
names of namespaces nor suffixes have dots, so no two of those can be the same.
*/ -}}

{{- /* The suffix of this installation, or nothing. */ -}}
{{- define "kata-deploy.suffix" -}}
{{- $suffix := (.Values.env).multiInstallSuffix | default "" | toString -}}
{{- if eq $suffix "default" -}}
{{- fail "env.multiInstallSuffix: `default` is what an installation without a suffix is called; choose another" -}}
{{- else if and $suffix (not (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" $suffix)) -}}
{{- fail (printf "env.multiInstallSuffix: %q cannot end names; use small letters, digits and inner dashes" $suffix) -}}
{{- else if gt (len $suffix) 63 -}}
{{- fail (printf "env.multiInstallSuffix: %q has %d characters; a label of that name may have 63" $suffix (len $suffix)) -}}
{{- end -}}
{{- $suffix -}}
{{- end -}}

{{- /* What the node calls this installation: in its label, and in its record. */ -}}
{{- define "kata-deploy.instance" -}}
{{- include "kata-deploy.suffix" . | default "default" -}}
{{- end -}}

{{- /* What the names of all objects begin with: kata-deploy, or kata-deploy-<suffix>. */ -}}
{{- define "kata-deploy.fullname" -}}
{{- $suffix := include "kata-deploy.suffix" . -}}
{{- if $suffix -}}kata-deploy-{{ $suffix }}{{- else -}}kata-deploy{{- end -}}
{{- end -}}

{{- /* Name of an object outside the release's namespace; takes (list $ "part"). */ -}}
{{- define "kata-deploy.clusterName" -}}
{{- $root := index . 0 -}}
{{- printf "%s-%s.%s.%s" (include "kata-deploy.fullname" $root) (index . 1) $root.Release.Namespace $root.Release.Name -}}
{{- end -}}

{{- /* This release, as `owner` says it of an object. */ -}}
{{- define "kata-deploy.release" -}}
{{ .Release.Namespace }}/{{ .Release.Name }}
{{- end -}}

{{- /* The release that helm has put an object there for; empty for none. Takes the object. */ -}}
{{- define "kata-deploy.owner" -}}
{{- $said := .metadata.annotations | default dict -}}
{{- if hasKey $said "meta.helm.sh/release-name" -}}
{{ get $said "meta.helm.sh/release-namespace" }}/{{ get $said "meta.helm.sh/release-name" }}
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

{{- /* The label on a Node that RuntimeClasses select: some installation serves Kata there. */ -}}
{{- define "kata-deploy.sharedLabel" -}}
katacontainers.io/kata-runtime
{{- end -}}

{{- /* The label on a Node that says this installation is there. */ -}}
{{- define "kata-deploy.mark" -}}
kata-deploy.katacontainers.io/{{ include "kata-deploy.instance" . }}
{{- end -}}

{{- /* A part of the fullname that fits into so many characters; takes (list $ "part" 40). */ -}}
{{- define "kata-deploy.shortName" -}}
{{- $root := index . 0 -}}
{{- $part := index . 1 -}}
{{- $limit := index . 2 -}}
{{- $base := include "kata-deploy.fullname" $root -}}
{{- $whole := printf "%s-%s" $base $part -}}
{{- if le (len $whole) $limit -}}
{{- $whole -}}
{{- else -}}
{{- /* What is cut off is told by a part of its sum: two long suffixes may begin alike. */ -}}
{{- printf "%s-%s-%s" ($base | trunc (sub $limit (add (len $part) 10) | int) | trimSuffix "-") (sha256sum $base | trunc 8) $part -}}
{{- end -}}
{{- end -}}

{{- /* What the pods of the mode `job` have as labels, as well; takes (list $ "component"). */ -}}
{{- define "kata-deploy.selectorLabels" -}}
app.kubernetes.io/name: kata-deploy
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}
