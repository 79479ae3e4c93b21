{{- /*
The labeller: the containers that run the stages claim, label, unlabel and unclaim. They alone have
credentials for the API server, and nothing of the host.
*/ -}}

{{- /* Its ServiceAccount, in the release's namespace. */ -}}
{{- define "kata-deploy.labeller.serviceAccount" -}}
{{ include "kata-deploy.fullname" . }}-labeller
{{- end -}}

{{- /* The user that the API server takes it for. */ -}}
{{- define "kata-deploy.labeller.user" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "kata-deploy.labeller.serviceAccount" . }}
{{- end -}}

{{- /* Its ClusterRole and binding, and its Role and binding in the namespace default. */ -}}
{{- define "kata-deploy.labeller.role" -}}
{{ include "kata-deploy.clusterName" (list . "labeller") }}
{{- end -}}

{{- /* Not empty where the admission policies are wanted, and known. */ -}}
{{- define "kata-deploy.labeller.policies" -}}
{{- $wanted := (.Values.rbac).admissionPolicy | default "auto" -}}
{{- if not (has $wanted (list "auto" "always" "never")) -}}
{{- fail (printf "rbac.admissionPolicy: %v is none of auto, always, never" $wanted) -}}
{{- end -}}
{{- /* Its first release is also the first that puts the node's name into tokens by default. */ -}}
{{- $known := .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy" -}}
{{- if or (eq $wanted "always") (and (eq $wanted "auto") $known) -}}true{{- end -}}
{{- end -}}

{{- /* Whom a policy is about; goes below spec. */ -}}
{{- define "kata-deploy.labeller.matchConditions" -}}
matchConditions:
  - name: is-the-labeller
    expression: request.userInfo.username == {{ include "kata-deploy.labeller.user" . | toJson }}
{{- end -}}

{{- /*
The Node a token is for. The API server puts it into the tokens of pods; one that was not made for a
pod on a node has none, and may change nothing. Its name and not its uid: some distributions register
the Node anew while its pods run on.
*/ -}}
{{- define "kata-deploy.labeller.ownNode" -}}
request.userInfo.?extra[?"authentication.kubernetes.io/node-name"][?0].orValue("")
{{- end -}}

{{- /* startupTaints as a CEL list of `key` and `key:effect`. */ -}}
{{- define "kata-deploy.labeller.startupTaints" -}}
{{- $taints := list -}}
{{- range .Values.startupTaints -}}
{{- if not (regexMatch "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?(:(NoSchedule|PreferNoSchedule|NoExecute))?$" (toString .)) -}}
{{- fail (printf "startupTaints: %q is neither `key` nor `key:effect` with an effect of NoSchedule, PreferNoSchedule, NoExecute; a value is not part of it" (toString .)) -}}
{{- end -}}
{{- $taints = append $taints (toString .) -}}
{{- end -}}
{{- toJson $taints -}}
{{- end -}}

{{- /* The binding that puts a policy into force; takes (list $ "name of the policy"). */ -}}
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
