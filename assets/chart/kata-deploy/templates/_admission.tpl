{{- /* What the admission policies of the labeling account and of the dispatcher share. */ -}}

{{- /* `true` if the release has the admission policies; else empty. */ -}}
{{- define "kata-deploy.admission.hasPolicies" -}}
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

{{- /* The binding that activates a policy. Takes (list $ "name of the policy"). */ -}}
{{- define "kata-deploy.admission.binding" }}
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
