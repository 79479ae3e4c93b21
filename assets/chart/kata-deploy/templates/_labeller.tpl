{{- /*
The labeling containers: those of the stages claim, label, unlabel and unclaim. In a node Job, only they have credentials
for the API server, and they mount no host path.
*/ -}}

{{- /* Their ServiceAccount, in the namespace of the release. */ -}}
{{- define "kata-deploy.labeller.serviceAccount" -}}
{{ include "kata-deploy.fullname" . }}-labeller
{{- end -}}

{{- /* The user name of that ServiceAccount. */ -}}
{{- define "kata-deploy.labeller.user" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "kata-deploy.labeller.serviceAccount" . }}
{{- end -}}

{{- /* Name of their ClusterRole, of their Role in the namespace default, and of both bindings. */ -}}
{{- define "kata-deploy.labeller.role" -}}
{{ include "kata-deploy.clusterName" (list . "labeller") }}
{{- end -}}

{{- /* The account that a policy applies to. Belongs below `spec`. */ -}}
{{- define "kata-deploy.labeller.matchConditions" -}}
matchConditions:
  - name: is-the-labeller
    expression: request.userInfo.username == {{ include "kata-deploy.labeller.user" . | toJson }}
{{- end -}}

{{- /*
CEL: the name of the Node that the token of a request is bound to. The API server writes it into the tokens of pods. A
token without it may change nothing. The name is used and not the UID, because some distributions register the Node
again while its pods keep running.
*/ -}}
{{- define "kata-deploy.labeller.ownNode" -}}
request.userInfo.?extra[?"authentication.kubernetes.io/node-name"][?0].orValue("")
{{- end -}}

{{- /* CEL: the list of `startupTaints`, each `key` or `key:effect`. */ -}}
{{- define "kata-deploy.labeller.startupTaints" -}}
{{- $taints := list -}}
{{- range .Values.startupTaints -}}
{{- if not (regexMatch "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?(:(NoSchedule|PreferNoSchedule|NoExecute))?$" (toString .)) -}}
{{- include "kata-deploy.refuse" (list $ (printf "startupTaints: %q is neither `key` nor `key:effect` with an effect of NoSchedule, PreferNoSchedule, NoExecute; correct it and leave out the value of the taint" (toString .))) -}}
{{- end -}}
{{- $taints = append $taints (toString .) -}}
{{- end -}}
{{- toJson $taints -}}
{{- end -}}
