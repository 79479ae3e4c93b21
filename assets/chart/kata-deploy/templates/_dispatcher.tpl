{{- /* The dispatcher: its names, its configurations and its pod. */ -}}

{{- define "kata-deploy.dispatcher.name" -}}
{{ include "kata-deploy.fullname" . }}-dispatcher
{{- end -}}

{{- /*
The Jobs of nodes, one for each runtime, by what Nodes call it; takes a dict of root, stages and tolerations.
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
{{- $stages := list "host-check" "claim" "artifacts" "cri" "label" -}}
{{- $tolerations := concat (include "kata-deploy.tolerations.startup" . | fromJsonArray) (include "kata-deploy.tolerations.conditions" . | fromJsonArray) -}}
{{- include "kata-deploy.dispatcher.templates" (dict "root" . "stages" $stages "tolerations" $tolerations) -}}
{{- end -}}

{{- /* It has to go where Kata is, whatever has become of the node. */ -}}
{{- define "kata-deploy.dispatcher.cleanupTemplates" }}
{{- $stages := list "unlabel" "revert-cri" "remove-artifacts" "unclaim" -}}
{{- include "kata-deploy.dispatcher.templates" (dict "root" . "stages" $stages "tolerations" (list (dict "operator" "Exists"))) -}}
{{- end -}}

{{- /* What all configurations begin with; takes (list $ "install" "job"). */ -}}
{{- define "kata-deploy.dispatcher.config" -}}
{{- $root := index . 0 -}}
{{- $action := index . 1 -}}
action: {{ $action }}
namespace: {{ $root.Release.Namespace }}
namePrefix: {{ include "kata-deploy.shortName" (list $root $action 40) }}
# Of two releases in a namespace, each has its own Jobs.
labels:
  app.kubernetes.io/name: kata-deploy
  app.kubernetes.io/instance: {{ $root.Release.Name }}
generation: {{ $root.Release.Revision | quote }}
selection:
  {{- include "kata-deploy.selection" (list $root (index . 2)) | fromJson | toYaml | nindent 2 }}
parallelism: {{ ($root.Values.job).parallelism | default 100 }}
{{- $ready := ($root.Values.job).waitForReadySeconds }}
waitForReadySeconds: {{ ternary 120 $ready (kindIs "invalid" $ready) }}
{{- $few := ($root.Values.job).maxNotReady }}
{{- if and (eq $action "install") (not (kindIs "invalid" $few)) }}
maxNotReady: {{ $few }}
{{- end }}
{{- if ($root.Values.job).events }}
events: true
{{- end }}
mark: {{ include "kata-deploy.mark" $root }}
{{- end -}}

{{- /* How carefully; takes the root. */ -}}
{{- define "kata-deploy.dispatcher.rollout" -}}
{{- $rollout := (.Values.job).rollout | default dict -}}
{{- $given := dict -}}
{{- range $key := list "canary" "waveSize" "maxFailures" -}}
{{- $value := index $rollout $key -}}
{{- if not (or (kindIs "invalid" $value) (and (eq $key "canary") (not $value))) -}}
{{- $_ := set $given $key (ternary $value (int (default 0 (ternary 0 $value (kindIs "string" $value)))) (kindIs "string" $value)) -}}
{{- end -}}
{{- end -}}
{{- if has (toString $given.waveSize) (list "0" "0%") -}}
{{- fail "job.rollout.waveSize: a wave of no nodes never ends; give it 1 or more, or take it out" -}}
{{- end -}}
{{- with $given }}
rollout:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{- /* Its pod; takes (list $ "install.yaml"). */ -}}
{{- define "kata-deploy.dispatcher.pod" }}
{{- $root := index . 0 -}}
metadata:
  labels:
    {{- include "kata-deploy.selectorLabels" (list $root "dispatcher") | nindent 4 }}
spec:
  restartPolicy: Never
  serviceAccountName: {{ include "kata-deploy.dispatcher.name" $root }}
  automountServiceAccountToken: true
  enableServiceLinks: false
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    seccompProfile:
      type: RuntimeDefault
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  nodeSelector:
    {{- include "kata-deploy.linux" ($root.Values.job).dispatcherNodeSelector | nindent 4 }}
  {{- with ($root.Values.job).dispatcherTolerations | default $root.Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.priorityClassName }}
  priorityClassName: {{ . | quote }}
  {{- end }}
  containers:
    - name: dispatcher
      image: {{ include "kata-deploy.image" (list ($root.Values.job).dispatcherImage "job.dispatcherImage" $root.Chart.AppVersion) }}
      imagePullPolicy: {{ $root.Values.imagePullPolicy | default "Always" }}
      env:
        - name: KATA_DISPATCHER_CONFIG
          value: /etc/kata-dispatcher/{{ index . 1 }}
        - name: KATA_DISPATCHER_LOG_LEVEL
          value: {{ include "kata-deploy.logLevel" $root }}
        # The Jobs of the nodes go with this one.
        - name: KATA_DISPATCHER_OWNER_NAME
          valueFrom:
            fieldRef:
              fieldPath: metadata.labels['batch.kubernetes.io/job-name']
        - name: KATA_DISPATCHER_OWNER_UID
          valueFrom:
            fieldRef:
              fieldPath: metadata.labels['batch.kubernetes.io/controller-uid']
      securityContext:
        {{- include "kata-deploy.plainSecurityContext" $root | trim | nindent 8 }}
      {{- with ($root.Values.job).dispatcherResources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        - name: config
          mountPath: /etc/kata-dispatcher
          readOnly: true
  volumes:
    - name: config
      configMap:
        name: {{ include "kata-deploy.dispatcher.name" $root }}
{{- end -}}

{{- /* How long a dispatcher's Job is kept: its nodes' Jobs go with it, and may outlive its pod. */ -}}
{{- define "kata-deploy.dispatcher.ttl" -}}
{{- add (include "kata-deploy.ttl" .) (((.Values.job).activeDeadlineSeconds) | default 3600) -}}
{{- end -}}
