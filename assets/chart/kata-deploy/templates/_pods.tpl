{{- /* The containers of the stages, and the Job of one node that they make. */ -}}

{{- /* The labels of the values, without those that are the chart's. */ -}}
{{- define "kata-deploy.podLabels" -}}
{{- $own := list "name" "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" -}}
{{- range $key, $value := .Values.podLabels -}}
{{- if not (has $key $own) }}
{{ toJson $key }}: {{ $value | toString | toJson }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* What automountServiceAccountToken would mount, for the containers that ask for it; takes seconds. */ -}}
{{- define "kata-deploy.credentialsVolume" }}
- name: credentials
  projected:
    defaultMode: 0444
    sources:
      - serviceAccountToken:
          path: token
          expirationSeconds: {{ . }}
      - configMap:
          name: kube-root-ca.crt
          items:
            - key: ca.crt
              path: ca.crt
      - downwardAPI:
          items:
            - path: namespace
              fieldRef:
                fieldPath: metadata.namespace
{{- end -}}

{{- define "kata-deploy.credentialsMount" }}
- name: credentials
  mountPath: /var/run/secrets/kubernetes.io/serviceaccount
  readOnly: true
{{- end -}}

{{- define "kata-deploy.valuesVolume" }}
- name: values
  configMap:
    name: {{ include "kata-deploy.node.configMap" . }}
{{- end -}}

{{- /* Variables of every container of kata-node. */ -}}
{{- define "kata-deploy.env" }}
- name: KATA_NODE_CONFIG
  value: /etc/kata-node/values.yaml
- name: KATA_NODE_LOG_LEVEL
  value: {{ include "kata-deploy.logLevel" . }}
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- end -}}

{{- define "kata-deploy.env.runningPods" }}
- name: KATA_NODE_WAIT_FOR_PODS
  value: {{ (.Values.runningPods).waitSeconds | default 0 | quote }}
{{- if (.Values.runningPods).ignore }}
- name: KATA_NODE_IGNORE_PODS
  value: "1"
{{- end }}
{{- end -}}

{{- /*
Root, for the host's files are root's, with no more rights than files take; takes
(list $ $capabilities).
*/ -}}
{{- define "kata-deploy.hostSecurityContext" }}
runAsUser: 0
runAsGroup: 0
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  {{- with index . 1 }}
  add: {{ toJson . }}
  {{- end }}
seccompProfile:
  type: RuntimeDefault
{{- with ((index . 0).Values.selinux).type }}
seLinuxOptions:
  type: {{ . | quote }}
{{- end }}
{{- with ((index . 0).Values.appArmor).type }}
appArmorProfile:
  type: {{ . }}
{{- end }}
{{- end -}}

{{- /* What can be asked for in a namespace of the restricted level. */ -}}
{{- define "kata-deploy.plainSecurityContext" }}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- /* What writing files of the host takes: of any owner, and handed on to that owner. */ -}}
{{- define "kata-deploy.capabilities" -}}
{{- list "CHOWN" "DAC_OVERRIDE" "FOWNER" | toJson -}}
{{- end -}}

{{- /* A container of kubectl; takes (list $ "name" (list "of" "arguments")). */ -}}
{{- define "kata-deploy.kubectl" -}}
{{- $root := index . 0 -}}
- name: {{ index . 1 }}
  image: {{ include "kata-deploy.image" (list $root.Values.kubectlImage "kubectlImage" "latest") }}
  imagePullPolicy: {{ $root.Values.imagePullPolicy | default "Always" }}
  command:
    - kubectl
    {{- toYaml (index . 2) | nindent 4 }}
  env:
    # kubectl keeps what it knows of the cluster below it.
    - name: HOME
      value: /tmp
  terminationMessagePolicy: FallbackToLogsOnError
  securityContext:
    {{- include "kata-deploy.plainSecurityContext" $root | trim | nindent 4 }}
  volumeMounts:
    - name: tmp
      mountPath: /tmp
{{- end -}}

{{- /* The container of one stage; takes (list $ "stage" "containerd" or "crio"). */ -}}
{{- define "kata-deploy.stage" }}
{{- $root := index . 0 -}}
{{- $stage := index . 1 -}}
{{- $paths := get (include "kata-deploy.mounts" (list $root (index . 2)) | fromJson) $stage | default list -}}
- name: {{ $stage }}
  image: {{ include "kata-deploy.image" (list $root.Values.image "image" $root.Chart.AppVersion) }}
  imagePullPolicy: {{ $root.Values.imagePullPolicy | default "Always" }}
  args: [stage, {{ $stage }}]
  env:
    {{- include "kata-deploy.env" $root | trim | nindent 4 }}
    - name: KATA_NODE_EXPECTED_MACHINE_ID
      value: "@MACHINE_ID@"
    - name: KATA_NODE_REPORTS
      value: /run/reports
    {{- if has $stage (list "cri" "revert-cri") }}
    {{- include "kata-deploy.env.runningPods" $root | trim | nindent 4 }}
    {{- end }}
    {{- if $paths }}
    - name: KATA_NODE_HOST_ROOT
      value: /host
    {{- end }}
  securityContext:
    {{- if not $paths }}
    {{- include "kata-deploy.plainSecurityContext" $root | trim | nindent 4 }}
    {{- else }}
    {{- /* What it looks at, the next ones write, and they pass by the modes and owners of the host's files. */ -}}
    {{- $capabilities := ternary (list "DAC_OVERRIDE") (include "kata-deploy.capabilities" $root | fromJsonArray) (eq $stage "host-check") }}
    {{- include "kata-deploy.hostSecurityContext" (list $root $capabilities) | trim | nindent 4 }}
    {{- end }}
  {{- with $root.Values.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
    - name: values
      mountPath: /etc/kata-node
      readOnly: true
    - name: reports
      mountPath: /run/reports
    {{- range $paths }}
    - name: {{ include "kata-deploy.volumeName" . }}
      mountPath: /host{{ . }}
      {{- if or (eq . "/etc/machine-id") (eq . "/dev") }}
      readOnly: true
      {{- end }}
    {{- else }}
    {{- include "kata-deploy.credentialsMount" $root | trim | nindent 4 }}
    {{- end }}
{{- end -}}

{{- /*
The Job of one node, for the dispatcher to put the node's name in. Takes a dict of root, runtime, stages in
their order, and tolerations.
*/ -}}
{{- define "kata-deploy.nodeJob" }}
{{- $root := .root -}}
{{- $runtime := .runtime -}}
{{- $mounts := include "kata-deploy.mounts" (list $root $runtime) | fromJson -}}
{{- $paths := list -}}
{{- range .stages -}}
{{- $paths = concat $paths (get $mounts . | default list) -}}
{{- end -}}
apiVersion: batch/v1
kind: Job
metadata:
  labels:
    {{- include "kata-deploy.labels" $root | nindent 4 }}
spec:
  backoffLimit: {{ ternary 3 ($root.Values.job).backoffLimit (kindIs "invalid" ($root.Values.job).backoffLimit) }}
  activeDeadlineSeconds: {{ ($root.Values.job).activeDeadlineSeconds | default 3600 }}
  ttlSecondsAfterFinished: {{ include "kata-deploy.ttl" $root }}
  podFailurePolicy:
    rules:
      # This node cannot run it (3), or the settings are wrong (2): to try again would end the same way.
      - action: FailJob
        onExitCodes:
          operator: In
          values: [2, 3]
      # Evicted or preempted, which says nothing about the node.
      - action: Ignore
        onPodConditions:
          - type: DisruptionTarget
            status: "True"
  template:
    metadata:
      annotations:
        # Another Job where the values have changed.
        checksum/values: {{ include "kata-deploy.node.values" $root | sha256sum }}
        {{- range $key, $value := $root.Values.podAnnotations }}
        {{ toJson $key }}: {{ $value | toJson }}
        {{- end }}
      labels:
        {{- include "kata-deploy.selectorLabels" (list $root "node-job") | nindent 8 }}
        {{- with include "kata-deploy.podLabels" $root | trim }}
        {{- . | nindent 8 }}
        {{- end }}
    spec:
      # The kubelet of any other node turns it down at once.
      os:
        name: linux
      restartPolicy: Never
      serviceAccountName: {{ include "kata-deploy.labeller.serviceAccount" $root }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      # What is sent away in the middle may finish what it has begun: a restart of the runtime, for one.
      terminationGracePeriodSeconds: 300
      {{- with $root.Values.priorityClassName }}
      priorityClassName: {{ . | quote }}
      {{- end }}
      {{- with $root.Values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      tolerations:
        {{- toYaml .tolerations | nindent 8 }}
      initContainers:
        {{- range initial .stages }}
        {{- include "kata-deploy.stage" (list $root . $runtime) | trim | nindent 8 }}
        {{- end }}
      containers:
        {{- include "kata-deploy.stage" (list $root (last .stages) $runtime) | trim | nindent 8 }}
      volumes:
        {{- include "kata-deploy.valuesVolume" $root | trim | nindent 8 }}
        {{- include "kata-deploy.credentialsVolume" 3600 | trim | nindent 8 }}
        - name: reports
          emptyDir: {}
        {{- include "kata-deploy.hostVolumes" (list $root $paths) | trim | nindent 8 }}
{{- end -}}

{{- define "kata-deploy.ttl" -}}
{{- $ttl := (.Values.job).ttlSecondsAfterFinished -}}
{{- $ttl = ternary 600 $ttl (kindIs "invalid" $ttl) | int -}}
{{- if lt $ttl 60 -}}
{{- fail (printf "job.ttlSecondsAfterFinished: %d is too short: the dispatcher could not read how a Job has ended; give it 60 or more" $ttl) -}}
{{- end -}}
{{- $ttl -}}
{{- end -}}
