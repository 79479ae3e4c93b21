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
{{- if and (eq $wanted "auto") (not $known) (eq "node" (include "kata-deploy.labelsBy" .)) -}}
{{- $version := printf "Kubernetes %s has no ValidatingAdmissionPolicy, so a token on one node could change every Node" .Capabilities.KubeVersion.Version -}}
{{- $remedy := ternary "remove rbac.labelsBy" "use deploymentMode: job, whose pods on the nodes then have no token" (not (empty (include "kata-deploy.isJobMode" .))) -}}
{{- fail (printf "rbac.admissionPolicy: %s; upgrade to Kubernetes 1.30 or later, or %s, or set rbac.admissionPolicy: never to accept this; with `helm template`, name the version of the cluster with --kube-version" $version $remedy) -}}
{{- end -}}
{{- if or (eq $wanted "always") (and (eq $wanted "auto") $known) -}}true{{- end -}}
{{- end -}}

{{- /*
Who labels the Nodes, `node` or `dispatcher`: stages of the node Jobs with a token of their own, or the dispatcher. Without
policies, a token on one node could change every Node, so the nodes then get none. The pods of the DaemonSet label their
Nodes themselves, because there is no dispatcher.
*/ -}}
{{- define "kata-deploy.labelsBy" -}}
{{- $wanted := (.Values.rbac).labelsBy | default "auto" -}}
{{- $policy := (.Values.rbac).admissionPolicy | default "auto" -}}
{{- if not (has $wanted (list "auto" "node" "dispatcher")) -}}
{{- include "kata-deploy.refuse" (list . (printf "rbac.labelsBy: %v is none of auto, node, dispatcher; set one of these" $wanted)) -}}
{{- else if not (include "kata-deploy.isJobMode" .) -}}
{{- if eq $wanted "dispatcher" -}}
{{- include "kata-deploy.refuse" (list . "rbac.labelsBy: the mode daemonset has no dispatcher; set deploymentMode: job, or remove rbac.labelsBy") -}}
{{- end -}}
node
{{- else if ne $wanted "auto" -}}
{{- $wanted -}}
{{- else if or (eq $policy "always") (and (ne $policy "never") (semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version)) -}}
node
{{- else -}}
dispatcher
{{- end -}}
{{- end -}}

{{- /* `true` if the dispatcher labels the Nodes; else empty. */ -}}
{{- define "kata-deploy.dispatcherLabels" -}}
{{- if eq "dispatcher" (include "kata-deploy.labelsBy" .) -}}true{{- end -}}
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

{{- /*
Variables of a policy for changes of a Node. Takes (list $ own-labels own-annotations), which are lists of the keys that
the account may change. `foreignLabels`, `foreignAnnotations` and `otherMetadata` are the other changes of the request.
`lostOwners` are managers from which it takes fields that are not its own.
*/ -}}
{{- define "kata-deploy.admission.nodeVariables" }}
- name: ownLabels
  expression: {{ index . 1 | toJson | squote }}
- name: ownAnnotations
  expression: {{ index . 2 | toJson | squote }}
- name: oldLabels
  expression: oldObject.metadata.?labels.orValue({})
- name: newLabels
  expression: object.metadata.?labels.orValue({})
# Other labels that the request adds, changes or removes.
- name: foreignLabels
  expression: >-
    variables.newLabels.filter(key, !(key in variables.ownLabels)
    && !(key in variables.oldLabels && variables.oldLabels[key] == variables.newLabels[key]))
    + variables.oldLabels.filter(key, !(key in variables.ownLabels) && !(key in variables.newLabels))
- name: oldAnnotations
  expression: oldObject.metadata.?annotations.orValue({})
- name: newAnnotations
  expression: object.metadata.?annotations.orValue({})
# Other annotations that the request adds, changes or removes.
- name: foreignAnnotations
  expression: >-
    variables.newAnnotations.filter(key, !(key in variables.ownAnnotations)
    && !(key in variables.oldAnnotations && variables.oldAnnotations[key] == variables.newAnnotations[key]))
    + variables.oldAnnotations.filter(key, !(key in variables.ownAnnotations) && !(key in variables.newAnnotations))
# All other fields, also fields of future Kubernetes releases: dyn() avoids a list of names. The API server itself
# changes resourceVersion and managedFields with every patch.
- name: oldMetadata
  expression: dyn(oldObject.metadata)
- name: newMetadata
  expression: dyn(object.metadata)
- name: ownMetadata
  expression: '["annotations", "labels", "managedFields", "resourceVersion"]'
- name: otherMetadata
  expression: >-
    variables.newMetadata.filter(key, !(key in variables.ownMetadata)
    && !(key in variables.oldMetadata && variables.oldMetadata[key] == variables.newMetadata[key]))
    + variables.oldMetadata.filter(key, !(key in variables.ownMetadata) && !(key in variables.newMetadata))
# A manager that applied a field must stay its owner in managedFields. Otherwise the field would stay on the Node
# when that manager drops it. Only the own labels and the taints may change their owner: a manager of other fields
# keeps an entry with all of these.
- name: ownFields
  expression: variables.ownLabels.map(key, "f:" + key)
- name: lostOwners
  expression: >-
    variables.oldMetadata.?managedFields.orValue([]).filter(entry, entry.operation == "Apply"
    && !(entry in variables.newMetadata.?managedFields.orValue([]))
    && !(entry.?fieldsV1.orValue({}).all(top, top == "f:metadata" || top == "f:spec")
      && entry.?fieldsV1[?"f:metadata"].orValue({}).all(key, key == "f:labels" || key == ".")
      && entry.?fieldsV1[?"f:metadata"][?"f:labels"].orValue({}).all(key, key in variables.ownFields || key == ".")
      && entry.?fieldsV1[?"f:spec"].orValue({}).all(key, key == "f:taints" || key == "."))
    && !variables.newMetadata.?managedFields.orValue([]).exists(kept, kept.operation == "Apply"
      && kept.manager == entry.manager && kept.?subresource.orValue("") == entry.?subresource.orValue("")
      && entry.?fieldsV1.orValue({}).all(top, top == "f:metadata" || top == "f:spec"
        || kept.?fieldsV1[?top] == optional.of(entry.fieldsV1[top]))
      && entry.?fieldsV1[?"f:metadata"].orValue({}).all(key, key == "f:labels"
        || kept.?fieldsV1[?"f:metadata"][?key] == optional.of(entry.fieldsV1["f:metadata"][key]))
      && entry.?fieldsV1[?"f:metadata"][?"f:labels"].orValue({}).all(key, key in variables.ownFields
        || kept.?fieldsV1[?"f:metadata"][?"f:labels"][?key]
          == optional.of(entry.fieldsV1["f:metadata"]["f:labels"][key]))
      && entry.?fieldsV1[?"f:spec"].orValue({}).all(key, key == "f:taints"
        || kept.?fieldsV1[?"f:spec"][?key] == optional.of(entry.fieldsV1["f:spec"][key]))))
    .map(entry, entry.manager)
{{- end -}}

{{- /* Rules for the record of the installation on a Node. Takes (list $ outcomes-that-the-account-may-write). */ -}}
{{- define "kata-deploy.admission.recordValidations" }}
{{- $status := include "kata-deploy.statusAnnotation" (index . 0) -}}
{{- $outcome := include "kata-deploy.outcomeLabel" (index . 0) }}
- expression: >-
    !({{ $outcome | squote }} in variables.newLabels)
    || variables.newLabels[{{ $outcome | squote }}] in {{ index . 1 | toJson }}
    || ({{ $outcome | squote }} in variables.oldLabels
      && variables.oldLabels[{{ $outcome | squote }}] == variables.newLabels[{{ $outcome | squote }}])
  message: this account may set the label {{ $outcome }} of a Node only to one of {{ join ", " (index . 1) }}
  reason: Forbidden
- expression: >-
    !({{ $status | squote }} in variables.newAnnotations)
    || variables.newAnnotations[{{ $status | squote }}].size() <= {{ include "kata-deploy.admission.recordSize" . }}
    || ({{ $status | squote }} in variables.oldAnnotations
      && variables.oldAnnotations[{{ $status | squote }}] == variables.newAnnotations[{{ $status | squote }}])
  message: >-
    this account may set the annotation {{ $status }} of a Node only to a text of at most
    {{ include "kata-deploy.admission.recordSize" . }} characters
  reason: Forbidden
{{- end -}}

{{- /* Characters of the annotation with the record. kata-node writes no longer one. */ -}}
{{- define "kata-deploy.admission.recordSize" -}}
4096
{{- end -}}

{{- /* Variables of a policy for an account that labels Nodes. */ -}}
{{- define "kata-deploy.admission.labelVariables" -}}
{{- $shared := include "kata-deploy.sharedLabel" . }}
{{- $installationLabel := include "kata-deploy.installationLabel" . }}
{{- $setter := include "kata-deploy.setterAnnotation" . }}
{{- $status := include "kata-deploy.statusAnnotation" . }}
{{- $version := include "kata-deploy.versionLabel" . }}
{{- $outcome := include "kata-deploy.outcomeLabel" . }}
{{- $labels := list $shared $installationLabel $version $outcome }}
{{- $annotations := list $setter $status }}
{{- include "kata-deploy.admission.nodeVariables" (list . $labels $annotations) }}
- name: oldSpec
  expression: dyn(oldObject).?spec.orValue({})
- name: newSpec
  expression: dyn(object).?spec.orValue({})
- name: otherSpec
  expression: >-
    variables.newSpec.filter(key, key != "taints"
    && !(key in variables.oldSpec && variables.oldSpec[key] == variables.newSpec[key]))
    + variables.oldSpec.filter(key, key != "taints" && !(key in variables.newSpec))
- name: oldTaints
  expression: oldObject.?spec.?taints.orValue([])
- name: newTaints
  expression: object.?spec.?taints.orValue([])
- name: startupTaints
  expression: {{ include "kata-deploy.labeller.startupTaints" . | squote }}
{{- end -}}

{{- /* Rules for an account that labels Nodes: the labels and the record of its installation, and the startup taints. */ -}}
{{- define "kata-deploy.admission.labelValidations" }}
{{- $shared := include "kata-deploy.sharedLabel" . }}
{{- $installationLabel := include "kata-deploy.installationLabel" . }}
{{- $setter := include "kata-deploy.setterAnnotation" . }}
- expression: variables.foreignLabels.size() == 0
  message: this account may change only the labels {{ $shared }} and {{ $installationLabel }} of a Node, and those of its record
  messageExpression: >-
    "this account may change only the labels {{ $shared }} and {{ $installationLabel }} of a Node, and those of its record, not "
    + variables.foreignLabels.join(", ")
  reason: Forbidden
- expression: >-
    {{ list $shared $installationLabel | toJson }}.all(key, !(key in variables.newLabels)
    || variables.newLabels[key] in ["true", "false"]
    || (key == {{ $installationLabel | squote }} && variables.newLabels[key] == "unfit")
    || (key in variables.oldLabels && variables.oldLabels[key] == variables.newLabels[key]))
  message: >-
    this account may set the labels {{ $shared }} and {{ $installationLabel }} to true or false, or remove them, and the
    second one to unfit
  reason: Forbidden
{{- include "kata-deploy.admission.recordValidations" (list . (list "installing" "installed" "failed" "rolled-back" "unfit" "removing")) }}
- expression: variables.foreignAnnotations.size() == 0
  message: this account may change only the annotation {{ $setter }} of a Node, and its record
  messageExpression: >-
    "this account may change only the annotation {{ $setter }} of a Node, and its record, not "
    + variables.foreignAnnotations.join(", ")
  reason: Forbidden
- expression: >-
    !({{ $setter | squote }} in variables.newAnnotations)
    || variables.newAnnotations[{{ $setter | squote }}] in ["kata-node", "other"]
    || ({{ $setter | squote }} in variables.oldAnnotations
      && variables.oldAnnotations[{{ $setter | squote }}] == variables.newAnnotations[{{ $setter | squote }}])
  message: this account may set the annotation {{ $setter }} only to kata-node or other, or remove it
  reason: Forbidden
- expression: variables.otherMetadata.size() == 0
  messageExpression: >-
    "this account may change only labels and annotations in a Node's metadata, not "
    + variables.otherMetadata.join(", ")
  reason: Forbidden
- expression: variables.lostOwners.size() == 0
  messageExpression: >-
    "this account may not take over fields of a Node that other managers have applied: " + variables.lostOwners.join(", ")
  reason: Forbidden
- expression: variables.otherSpec.size() == 0
  messageExpression: >-
    "this account may change only the taints in a Node's spec, not "
    + variables.otherSpec.join(", ")
  reason: Forbidden
- expression: variables.newTaints.all(taint, taint in variables.oldTaints)
  message: this account may not add or change taints of a Node
  reason: Forbidden
- expression: >-
    variables.oldTaints.all(taint, taint in variables.newTaints
    || taint.key in variables.startupTaints
    || taint.key + ":" + taint.effect in variables.startupTaints)
  message: this account may remove only the taints of a Node that startupTaints lists
  reason: Forbidden
{{- end -}}

{{- /* Variables of a policy for Events. */ -}}
{{- define "kata-deploy.admission.eventVariables" -}}
# dyn() skips the type check, because these fields have other names in events.k8s.io. Requests in that format are
# converted to this one.
- name: event
  expression: dyn(object)
- name: components
  expression: >-
    [variables.event.?source.?component.orValue(""), variables.event.?reportingComponent.orValue("")]
    .filter(name, name != "")
# The API server limits some of these, and only in the format of events.k8s.io.
- name: otherTexts
  expression: >-
    [variables.event.?reason, variables.event.?type, variables.event.?action, variables.event.?reportingInstance,
    variables.event.?source.?host, variables.event.involvedObject.?apiVersion, variables.event.involvedObject.?fieldPath,
    variables.event.involvedObject.?namespace, variables.event.involvedObject.?resourceVersion]
{{- end -}}

{{- /* Rules for the Events of an account. Takes (list $ "component"). */ -}}
{{- define "kata-deploy.admission.eventValidations" }}
- expression: request.namespace == "default"
  message: this account may record Events only in the namespace default
  reason: Forbidden
- expression: variables.components.size() > 0 && variables.components.all(name, name == {{ index . 1 | squote }})
  message: this account may record Events only as the component {{ index . 1 }}
  reason: Forbidden
- expression: >-
    size(variables.event.?message.orValue("")) <= 1024 && variables.otherTexts.all(text, size(text.orValue("")) <= 256)
    && variables.event.metadata.?annotations.orValue({}).size() == 0
    && variables.event.metadata.?labels.orValue({}).size() == 0
    && !has(variables.event.metadata.finalizers)
  message: >-
    this account may record Events with messages of up to 1024 characters, with other texts of up to 256 characters, and
    without labels, annotations and finalizers
  reason: Forbidden
{{- end -}}
