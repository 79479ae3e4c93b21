{{- /* The dispatcher: its names, its configuration files and its pod. */ -}}

{{- define "kata-deploy.dispatcher.name" -}}
{{ include "kata-deploy.fullname" . }}-dispatcher
{{- end -}}

{{- /*
The node Jobs, one per container runtime, by the name that Nodes report for it. Takes a dict of root, stages and
tolerations.
*/ -}}
{{- define "kata-deploy.dispatcher.templates" -}}
{{- $job := . -}}
{{- range $runtime := include "kata-deploy.runtimes" .root | fromJsonArray }}
- runtime: {{ ternary "cri-o" $runtime (eq $runtime "crio") }}
  template:
    {{- include "kata-deploy.nodeJob" (dict "root" $job.root "runtime" $runtime "stages" $job.stages "tolerations" $job.tolerations) | trim | nindent 4 }}
{{- end -}}
{{- end -}}

{{- define "kata-deploy.dispatcher.installTemplates" }}
{{- $stages := ternary (list "host-check" "artifacts" "cri") (list "host-check" "claim" "artifacts" "cri" "label") (not (empty (include "kata-deploy.dispatcherLabels" .))) -}}
{{- $tolerations := concat (include "kata-deploy.tolerations.install" . | fromJsonArray) (include "kata-deploy.tolerations.nodeConditions" . | fromJsonArray) -}}
{{- include "kata-deploy.dispatcher.templates" (dict "root" . "stages" $stages "tolerations" $tolerations) -}}
{{- end -}}

{{- /* The Job must run on every node with Kata, so it tolerates all taints. */ -}}
{{- define "kata-deploy.dispatcher.cleanupTemplates" }}
{{- $stages := ternary (list "revert-cri" "remove-artifacts") (list "unlabel" "revert-cri" "remove-artifacts" "unclaim") (not (empty (include "kata-deploy.dispatcherLabels" .))) -}}
{{- include "kata-deploy.dispatcher.templates" (dict "root" . "stages" $stages "tolerations" (list (dict "operator" "Exists"))) -}}
{{- end -}}

{{- /* The Job that looks for running pods before the first node is cleaned. */ -}}
{{- define "kata-deploy.dispatcher.checkTemplates" }}
{{- include "kata-deploy.dispatcher.templates" (dict "root" . "stages" (list "check-pods") "tolerations" (list (dict "operator" "Exists"))) -}}
{{- end -}}

{{- /* The user name of the dispatcher's ServiceAccount. */ -}}
{{- define "kata-deploy.dispatcher.user" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "kata-deploy.dispatcher.name" . }}
{{- end -}}

{{- /*
CEL: the pods of all node Jobs, as a list of maps: `containers` in their order, the `labels` and `annotations`, and the
other fields of the pod as `spec`.
*/ -}}
{{- define "kata-deploy.dispatcher.allowedPods" -}}
{{- $pods := list -}}
{{- $templates := concat (include "kata-deploy.once" (list . "kata-deploy.dispatcher.installTemplates") | fromYamlArray) (include "kata-deploy.once" (list . "kata-deploy.dispatcher.cleanupTemplates") | fromYamlArray) (include "kata-deploy.once" (list . "kata-deploy.dispatcher.checkTemplates") | fromYamlArray) -}}
{{- range $templates -}}
{{- $pod := .template.spec.template -}}
{{- $spec := omit $pod.spec "initContainers" "containers" -}}
{{- $pods = append $pods (dict "containers" (concat ($pod.spec.initContainers | default list) $pod.spec.containers) "labels" ($pod.metadata.labels | default dict) "annotations" ($pod.metadata.annotations | default dict) "spec" $spec) -}}
{{- end -}}
{{- include "kata-deploy.celLiteral" $pods -}}
{{- end -}}

{{- /* CEL: a value as a literal. All values of a map or list must have one type in CEL, so each is marked as dynamic. */ -}}
{{- define "kata-deploy.celLiteral" -}}
{{- if kindIs "map" . -}}
dyn({ {{- $comma := "" -}}{{- range $key, $value := . -}}{{ $comma }}{{ toJson $key }}:{{ include "kata-deploy.celLiteral" $value }}{{- $comma = "," -}}{{- end -}} })
{{- else if kindIs "slice" . -}}
dyn([{{- range $at, $value := . -}}{{ ternary "," "" (gt $at 0) }}{{ include "kata-deploy.celLiteral" $value }}{{- end -}}])
{{- else -}}
dyn({{ toJson . }})
{{- end -}}
{{- end -}}

{{- /* The keys that all configuration files share. Takes (list $ "install" "job"): the action and the section of the values. */ -}}
{{- define "kata-deploy.dispatcher.config" -}}
{{- $root := index . 0 -}}
{{- $action := index . 1 -}}
action: {{ $action }}
namespace: {{ $root.Release.Namespace }}
namePrefix: {{ include "kata-deploy.shortName" (list $root $action 40) }}
# They tell the Jobs of two releases in one namespace apart.
labels:
  app.kubernetes.io/name: kata-deploy
  app.kubernetes.io/instance: {{ $root.Release.Name }}
{{- /* Without a cluster, the revision is always 1. The dispatcher then has a generation of its own for each of its Jobs. */ -}}
{{- if include "kata-deploy.hasCluster" $root }}
generation: {{ $root.Release.Revision | quote }}
{{- end }}
state:
  configMap: {{ include "kata-deploy.state.name" $root }}
  installation:
    {{- include "kata-deploy.installation" $root | fromJson | toYaml | nindent 4 }}
selection:
  {{- include "kata-deploy.selection" (list $root (index . 2)) | fromJson | toYaml | nindent 2 }}
parallelism: {{ ($root.Values.job).parallelism | default 100 }}
{{- $ready := ($root.Values.job).waitForReadySeconds }}
waitForReadySeconds: {{ ternary 120 $ready (kindIs "invalid" $ready) }}
{{- $few := ($root.Values.job).maxNotReady }}
{{- if and (eq $action "install") (not (kindIs "invalid" $few)) }}
maxNotReady: {{ $few }}
{{- end }}
{{- if and (eq $action "install") (eq "fail" (($root.Values.job).unfitNodes | default "report")) }}
unfitNodes: fail
{{- end }}
{{- if ($root.Values.job).events }}
events: true
{{- end }}
mark: {{ include "kata-deploy.installationLabel" $root }}
{{- if include "kata-deploy.dispatcherLabels" $root }}
labelNodes:
  settings: {{ include "kata-deploy.once" (list $root "kata-deploy.node.values") | sha256sum | trunc 12 | quote }}
  timeoutSeconds: {{ include "kata-deploy.labelTimeout" $root }}
  {{- with include "kata-deploy.labeller.startupTaints" $root | fromJsonArray }}
  startupTaints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- /*
The text of a configuration file. Takes (list $ "install.yaml"). The pod of the dispatcher has its digest, so it must not
depend on anything but the values and the release.
*/ -}}
{{- define "kata-deploy.dispatcher.configFile" -}}
{{- $file := index . 1 -}}
{{- with index . 0 -}}
{{- if eq $file "cleanup.yaml" -}}
{{- include "kata-deploy.dispatcher.config" (list . "cleanup" "job.cleanup") }}
{{- include "kata-deploy.dispatcher.deadline" . }}
{{- if not (include "kata-deploy.hasCluster" .) }}
retryFailedNodes: true
{{- end }}
templates:
  {{- include "kata-deploy.once" (list . "kata-deploy.dispatcher.cleanupTemplates") | trim | nindent 2 }}
{{- if not (or ((.Values.job).cleanup).force (.Values.runningPods).ignore) }}
check:
  namePrefix: {{ include "kata-deploy.shortName" (list . "check" 40) }}
  templates:
    {{- include "kata-deploy.once" (list . "kata-deploy.dispatcher.checkTemplates") | trim | nindent 4 }}
{{- end }}
{{- else -}}
{{- include "kata-deploy.dispatcher.config" (list . "install" "job") }}
{{- if eq $file "reconcile.yaml" }}
skipServing: true
# The deadline of its Job would delete the pod and its log.
deadlineSeconds: {{ add (((.Values.job).activeDeadlineSeconds) | default 3600) 540 }}
{{- else }}
{{- include "kata-deploy.dispatcher.deadline" . }}
waitForNodesSeconds: {{ (.Values.job).waitForNodesSeconds | default 0 }}
{{- $settle := (.Values.job).nodeSettleSeconds }}
nodeSettleSeconds: {{ ternary 15 $settle (kindIs "invalid" $settle) }}
{{- end }}
{{- with include "kata-deploy.dispatcher.rollout" . | trim }}
{{ . }}
{{- end }}
templates:
  {{- include "kata-deploy.once" (list . "kata-deploy.dispatcher.installTemplates") | trim | nindent 2 }}
{{- if eq $file "install.yaml" }}
# Nodes with the installation label that are no longer selected.
removed:
  namePrefix: {{ include "kata-deploy.shortName" (list . "removed" 40) }}
  templates:
    {{- include "kata-deploy.once" (list . "kata-deploy.dispatcher.cleanupTemplates") | trim | nindent 4 }}
{{- end }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "kata-deploy.dispatcher.deadline" -}}
{{- with (.Values.job).deadlineSeconds }}
deadlineSeconds: {{ . }}
{{- end }}
{{- end -}}

{{- /* The section `rollout`. Takes the root. */ -}}
{{- define "kata-deploy.dispatcher.rollout" -}}
{{- $rollout := (.Values.job).rollout | default dict -}}
{{- $given := dict -}}
{{- range $key := list "canary" "waveSize" "maxFailures" -}}
{{- $value := index $rollout $key -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $_ := set $given $key (ternary $value (int (default 0 (ternary 0 $value (kindIs "string" $value)))) (kindIs "string" $value)) -}}
{{- end -}}
{{- end -}}
{{- if not (or (hasKey $given "canary") (hasKey $given "maxFailures")) -}}
{{- $_ := set $given "canary" "auto" -}}
{{- end -}}
{{- if has (toString $given.waveSize) (list "0" "0%") -}}
{{- include "kata-deploy.refuse" (list . "job.rollout.waveSize: a wave must have at least one node; set a number of 1 or more, a share of 1% or more, or remove the key") -}}
{{- end -}}
rollout:
  {{- toYaml $given | nindent 2 }}
{{- end -}}

{{- /*
The Job of a dispatcher. Takes (list $ "install" "events of helm" "delete policy of helm"). Without a cluster it is an
ordinary object. Its name then has a digest, because its template cannot be changed: an apply without a change does nothing,
and a change makes a new Job, which deletes the previous one. Argo CD makes the Job again with each sync.
*/ -}}
{{- define "kata-deploy.dispatcher.job" }}
{{- $root := index . 0 -}}
{{- $cluster := include "kata-deploy.hasCluster" $root -}}
{{- $argo := include "kata-deploy.isArgo" $root -}}
{{- $part := printf "%s-dispatcher" (index . 1) -}}
{{- $pod := include "kata-deploy.dispatcher.pod" (list $root (printf "%s.yaml" (index . 1))) | trim -}}
apiVersion: batch/v1
kind: Job
metadata:
  {{- if or $cluster $argo }}
  name: {{ include "kata-deploy.shortName" (list $root $part 63) }}
  {{- else }}
  name: {{ include "kata-deploy.shortName" (list $root $part 52) }}-{{ sha256sum $pod | trunc 10 }}
  {{- end }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "kata-deploy.labels" $root | nindent 4 }}
    {{- if not $cluster }}
    app.kubernetes.io/component: dispatcher
    {{- end }}
  {{- if $cluster }}
  annotations:
    helm.sh/hook: {{ index . 2 }}
    # After the hook that deletes the CronJob.
    helm.sh/hook-weight: "0"
    helm.sh/hook-delete-policy: {{ index . 3 }}
    # helm 3.18 and later shows the log.
    helm.sh/hook-output-log-policy: hook-succeeded,hook-failed
  {{- else if $argo }}
  annotations:
    argocd.argoproj.io/hook: PostSync
    argocd.argoproj.io/hook-delete-policy: BeforeHookCreation
  {{- end }}
spec:
  {{- /* An apply does not run the Job of a cleanup again, and pods that still run in Kata may end. So it is retried. */}}
  {{- include "kata-deploy.dispatcher.podFailurePolicy" (or $cluster (eq (index . 1) "install")) | nindent 2 }}
  {{- if $cluster }}
  # helm does not delete hooks with the release. The node Jobs are deleted together with this Job, so it outlives them.
  ttlSecondsAfterFinished: {{ include "kata-deploy.dispatcher.jobTTL" $root }}
  {{- end }}
  template:
    {{- $pod | nindent 4 }}
{{- end -}}

{{- /* The fields of a pod with the image of the dispatcher. Takes the root. */ -}}
{{- define "kata-deploy.dispatcher.podFields" }}
restartPolicy: Never
# The token that Kubernetes would mount lasts up to a year, as long as its pod is not deleted.
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
nodeSelector:
  {{- include "kata-deploy.linuxNodeSelector" (.Values.job).dispatcherNodeSelector | nindent 2 }}
# The token of this pod can create the node Jobs, so the pod prefers the nodes that run no workloads of users.
affinity:
  nodeAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      # The API server warns of the older label node-role.kubernetes.io/master.
      - weight: 100
        preference:
          matchExpressions:
            - key: node-role.kubernetes.io/control-plane
              operator: Exists
tolerations:
  {{- range $role := list "control-plane" "master" }}
  - key: node-role.kubernetes.io/{{ $role }}
    operator: Exists
    effect: NoSchedule
  {{- end }}
  {{- with (.Values.job).dispatcherTolerations | default .Values.tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "kata-deploy.dispatcher.image" }}
image: {{ include "kata-deploy.dispatcherImage" . }}
imagePullPolicy: {{ .Values.imagePullPolicy | default "Always" }}
{{- end -}}

{{- /* When the Job of a dispatcher makes a new pod. Takes whether a failure of the program itself is final. */ -}}
{{- define "kata-deploy.dispatcher.podFailurePolicy" -}}
# A pod that was killed or deleted is replaced, and the new one goes on.
backoffLimit: 6
podFailurePolicy:
  rules:
    # The pod was evicted or preempted, or its node is gone.
    - action: Ignore
      onPodConditions:
        - type: DisruptionTarget
          status: "True"
    {{- if . }}
    # The program itself has failed, which is reported at once. Retries happen in the node Jobs.
    - action: FailJob
      onExitCodes:
        operator: In
        values: [1, 2]
    {{- end }}
{{- end -}}

{{- /* The own Job of a dispatcher, as variables of its environment. */ -}}
{{- define "kata-deploy.dispatcher.ownerEnv" -}}
- name: KATA_DISPATCHER_OWNER_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.labels['batch.kubernetes.io/job-name']
- name: KATA_DISPATCHER_OWNER_UID
  valueFrom:
    fieldRef:
      fieldPath: metadata.labels['batch.kubernetes.io/controller-uid']
{{- end -}}

{{- /* The pod of the dispatcher. Takes (list $ "install.yaml"): the configuration file that it reads. */ -}}
{{- define "kata-deploy.dispatcher.pod" }}
{{- $root := index . 0 -}}
metadata:
  labels:
    {{- include "kata-deploy.selectorLabels" (list $root "dispatcher") | nindent 4 }}
spec:
  serviceAccountName: {{ include "kata-deploy.dispatcher.name" $root }}
  {{- include "kata-deploy.dispatcher.podFields" $root | trim | nindent 2 }}
  containers:
    - name: dispatcher
      {{- include "kata-deploy.dispatcher.image" $root | trim | nindent 6 }}
      env:
        - name: KATA_DISPATCHER_CONFIG
          value: /etc/kata-dispatcher/{{ index . 1 }}
        # The dispatcher refuses a file that somebody has changed.
        - name: KATA_DISPATCHER_CONFIG_DIGEST
          value: {{ include "kata-deploy.once" (list $root "kata-deploy.dispatcher.configFile" (index . 1)) | sha256sum }}
        - name: KATA_DISPATCHER_LOG_LEVEL
          value: {{ include "kata-deploy.logLevel" $root }}
        # This Job owns the node Jobs, so Kubernetes deletes them together with it.
        {{- include "kata-deploy.dispatcher.ownerEnv" $root | nindent 8 }}
      securityContext:
        {{- include "kata-deploy.restrictedSecurityContext" $root | trim | nindent 8 }}
      {{- with ($root.Values.job).dispatcherResources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        - name: config
          mountPath: /etc/kata-dispatcher
          readOnly: true
        {{- include "kata-deploy.credentialsMount" $root | trim | nindent 8 }}
  volumes:
    {{- include "kata-deploy.credentialsVolume" (include "kata-deploy.tokenSeconds" $root) | trim | nindent 4 }}
    - name: config
      configMap:
        name: {{ include "kata-deploy.dispatcher.name" $root }}
{{- end -}}

{{- /*
Seconds that a dispatcher's Job is kept. Its node Jobs are deleted together with it and may run longer than its pod.
*/ -}}
{{- define "kata-deploy.dispatcher.jobTTL" -}}
{{- add (include "kata-deploy.nodeJobTTL" .) (((.Values.job).activeDeadlineSeconds) | default 3600) -}}
{{- end -}}
