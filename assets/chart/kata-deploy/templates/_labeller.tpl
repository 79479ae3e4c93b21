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

{{- /* `true` if the release has the admission policies; else empty. */ -}}
{{- define "kata-deploy.labeller.hasPolicies" -}}
{{- $wanted := (.Values.rbac).admissionPolicy | default "auto" -}}
{{- if not (has $wanted (list "auto" "always" "never")) -}}
{{- include "kata-deploy.refuse" (list . (printf "rbac.admissionPolicy: %v is none of auto, always, never; set one of these" $wanted)) -}}
{{- end -}}
{{- /* Kubernetes 1.30 has v1 of the API. It is also the first release that writes the node's name into tokens by default. */ -}}
{{- /* The version decides, because `helm template` knows no APIs of the cluster. */ -}}
{{- $known := semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version -}}
{{- if and (eq $wanted "auto") (not $known) -}}
{{- fail (printf "rbac.admissionPolicy: Kubernetes %s has no ValidatingAdmissionPolicy, so a token on one node could change every Node; upgrade to Kubernetes 1.30 or later, or set rbac.admissionPolicy: never to accept this; with `helm template`, name the version of the cluster with --kube-version" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if ne $wanted "never" -}}true{{- end -}}
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

{{- /* The binding that activates a policy. Takes (list $ "name of the policy"). */ -}}
{{- define "kata-deploy.labeller.binding" }}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ index . 1 }}
  labels:
    {{- include "kata-deploy.labels" (index . 0) | nindent 4 }}
spec:
  policyName: {{ index . 1 }}
  validationActions: [Deny]
{{- end -}}
