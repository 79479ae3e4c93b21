{{- /* The containers of the stages, and the node Job with these containers. */ -}}

{{- /* podLabels of the values, without the labels that the chart sets. */ -}}
{{- define "kata-deploy.extraPodLabels" -}}
{{- $own := list "name" "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" -}}
{{- range $key, $value := include "kata-deploy.labelTexts" .Values.podLabels | fromYaml -}}
{{- if not (has $key $own) }}
{{ toJson $key }}: {{ toJson $value }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /*
The volume that automountServiceAccountToken would mount, so that single containers can mount it. Takes the life time of
the token in seconds.
*/ -}}
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
                apiVersion: v1
                fieldPath: metadata.namespace
{{- end -}}

{{- /* The life time of a token in seconds, the shortest that Kubernetes allows. The kubelet renews the token of a running pod. */ -}}
{{- define "kata-deploy.tokenSeconds" -}}
600
{{- end -}}

{{- define "kata-deploy.credentialsMount" }}
- name: credentials
  mountPath: /var/run/secrets/kubernetes.io/serviceaccount
  readOnly: true
{{- end -}}

{{- define "kata-deploy.valuesVolume" }}
- name: values
  configMap:
    # The default, written out because an admission policy compares the whole volume.
    defaultMode: 0644
    name: {{ include "kata-deploy.node.configMap" . }}
{{- end -}}

{{- /* Environment of every kata-node container. */ -}}
{{- define "kata-deploy.kataNodeEnv" }}
- name: KATA_NODE_CONFIG
  value: /etc/kata-node/values.yaml
# kata-node refuses a file that somebody has changed.
- name: KATA_NODE_CONFIG_DIGEST
  value: {{ include "kata-deploy.once" (list . "kata-deploy.node.values") | sha256sum }}
- name: KATA_NODE_LOG_LEVEL
  value: {{ include "kata-deploy.logLevel" . }}
- name: KATA_NODE_HELM_RELEASE
  value: {{ .Release.Namespace }}/{{ .Release.Name }}
- name: NODE_NAME
  valueFrom:
    fieldRef:
      # The default, written out because an admission policy compares the whole entry.
      apiVersion: v1
      fieldPath: spec.nodeName
{{- end -}}

{{- /* The volume with the payload, if it is not in the image of kata-node. */ -}}
{{- define "kata-deploy.payloadVolume" }}
{{- if include "kata-deploy.once" (list . "kata-deploy.hasPayloadVolume") }}
- name: payload
  image:
    reference: {{ include "kata-deploy.payloadImage" . }}
    pullPolicy: {{ .Values.imagePullPolicy | default "Always" }}
{{- end }}
{{- end -}}

{{- /* The public image does not name its release in a file. */ -}}
{{- define "kata-deploy.payloadEnv" }}
{{- if include "kata-deploy.once" (list . "kata-deploy.hasPayloadVolume") }}
{{- with include "kata-deploy.kataRelease" . }}
- name: KATA_NODE_PAYLOAD_RELEASE
  value: {{ quote . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "kata-deploy.payloadMount" }}
{{- if include "kata-deploy.once" (list . "kata-deploy.hasPayloadVolume") }}
- name: payload
  mountPath: /opt/kata-payload
  readOnly: true
{{- end }}
{{- end -}}

{{- define "kata-deploy.runningPodsEnv" }}
- name: KATA_NODE_WAIT_FOR_PODS
  value: {{ (.Values.runningPods).waitSeconds | default 0 | quote }}
{{- if (.Values.runningPods).ignore }}
- name: KATA_NODE_IGNORE_PODS
  value: "1"
{{- end }}
{{- end -}}

{{- /*
Security context of a container that works on host paths. It runs as root, because root owns the files, and has only
the given capabilities. Takes (list $ $capabilities).
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

{{- /* Security context that the Pod Security level `restricted` allows. */ -}}
{{- define "kata-deploy.restrictedSecurityContext" }}
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

{{- /* Capabilities to write files of any owner, and to give a file to its owner. */ -}}
{{- define "kata-deploy.writeCapabilities" -}}
{{- list "CHOWN" "DAC_OVERRIDE" "FOWNER" | toJson -}}
{{- end -}}

{{- /* Seconds within which a Node must be Ready, report its handlers and keep its labels. */ -}}
{{- define "kata-deploy.labelTimeout" -}}
{{- $ready := (.Values.job).waitNodeReadySeconds -}}
{{- max 30 (ternary 300 $ready (kindIs "invalid" $ready)) -}}
{{- end -}}

{{- /* The container of one stage. Takes (list $ "stage" "containerd" or "crio"). */ -}}
{{- define "kata-deploy.stageContainer" }}
{{- $root := index . 0 -}}
{{- $stage := index . 1 -}}
{{- $paths := get (include "kata-deploy.once" (list $root "kata-deploy.stageHostPaths" (index . 2)) | fromJson) $stage | default list -}}
- name: {{ $stage }}
  image: {{ include "kata-deploy.nodeImage" $root }}
  imagePullPolicy: {{ $root.Values.imagePullPolicy | default "Always" }}
  args: [stage, {{ $stage }}]
  env:
    {{- include "kata-deploy.kataNodeEnv" $root | trim | nindent 4 }}
    - name: KATA_NODE_EXPECTED_MACHINE_ID
      value: "@MACHINE_ID@"
    {{- if not (include "kata-deploy.dispatcherLabels" $root) }}
    - name: KATA_NODE_REPORTS
      value: /run/reports
    {{- end }}
    {{- /* The Secret with containerd's drop-in is for the stages that check and write it. CRI-O has no such drop-in. */ -}}
    {{- $secret := and (include "kata-deploy.userDropIn.secret" $root) (has $stage (list "host-check" "cri")) (ne (index . 2) "crio") }}
    {{- if $secret }}
    {{- include "kata-deploy.userDropIn.env" $root | nindent 4 }}
    {{- end }}
    {{- if has $stage (list "host-check" "artifacts") }}
    {{- with include "kata-deploy.payloadEnv" $root | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- end }}
    {{- if has $stage (list "cri" "revert-cri" "check-pods") }}
    {{- include "kata-deploy.runningPodsEnv" $root | trim | nindent 4 }}
    {{- end }}
    {{- if eq $stage "label" }}
    # The labels must also stay unchanged for a while.
    - name: KATA_NODE_LABEL_TIMEOUT
      value: {{ include "kata-deploy.labelTimeout" $root | quote }}
    {{- end }}
    {{- if $paths }}
    - name: KATA_NODE_HOST_ROOT
      value: /host
    {{- end }}
  securityContext:
    {{- if not $paths }}
    {{- include "kata-deploy.restrictedSecurityContext" $root | trim | nindent 4 }}
    {{- else }}
    {{- /* host-check and check-pods read files of any owner and mode. The other stages write them. */ -}}
    {{- $reads := has $stage (list "host-check" "check-pods") -}}
    {{- $capabilities := ternary (list "DAC_OVERRIDE") (include "kata-deploy.writeCapabilities" $root | fromJsonArray) $reads }}
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
    {{- if not (include "kata-deploy.dispatcherLabels" $root) }}
    - name: reports
      mountPath: /run/reports
    {{- end }}
    {{- if $secret }}
    {{- include "kata-deploy.userDropIn.mount" $root | nindent 4 }}
    {{- end }}
    {{- if has $stage (list "host-check" "artifacts") }}
    {{- with include "kata-deploy.payloadMount" $root | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- end }}
    {{- range $paths }}
    - name: {{ include "kata-deploy.volumeName" . }}
      mountPath: /host{{ . }}
      {{- if or (eq $stage "check-pods") (eq . "/etc/machine-id") (eq . "/dev") (and (eq . "/run/kata-node") (eq $stage "host-check")) }}
      readOnly: true
      {{- end }}
    {{- else }}
    {{- include "kata-deploy.credentialsMount" $root | trim | nindent 4 }}
    {{- end }}
{{- end -}}

{{- /*
The template of a node Job. The dispatcher adds the name of the node. Takes a dict of root, runtime, stages in their
order, and tolerations.
*/ -}}
{{- define "kata-deploy.nodeJob" }}
{{- $root := .root -}}
{{- $runtime := .runtime -}}
{{- $mounts := include "kata-deploy.once" (list $root "kata-deploy.stageHostPaths" $runtime) | fromJson -}}
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
  {{- if has "check-pods" .stages }}
  # A node that cannot answer is asked again by its cleanup.
  backoffLimit: 0
  {{- else }}
  backoffLimit: {{ ternary 3 ($root.Values.job).backoffLimit (kindIs "invalid" ($root.Values.job).backoffLimit) }}
  {{- end }}
  activeDeadlineSeconds: {{ ($root.Values.job).activeDeadlineSeconds | default 3600 }}
  ttlSecondsAfterFinished: {{ include "kata-deploy.nodeJobTTL" $root }}
  podFailurePolicy:
    rules:
      # Exit code 2: the settings are wrong. Exit code 3: this node cannot run Kata. A retry would fail again. Exit code
      # 4: the change was rolled back. A retry could restart the container runtime twice for each try.
      - action: FailJob
        onExitCodes:
          operator: In
          values: [2, 3, 4]
      # The runtime has lost the container, because another program restarted the runtime and the container's shim had
      # ended. The stage did not fail, and the next pod completes its work.
      - action: Ignore
        onExitCodes:
          operator: In
          values: [255]
      # The pod was evicted or preempted. That does not count as a failure of the node.
      - action: Ignore
        onPodConditions:
          - type: DisruptionTarget
            status: "True"
  template:
    metadata:
      annotations:
        # Changed values make the dispatcher run the Job again.
        checksum/values: {{ include "kata-deploy.once" (list $root "kata-deploy.node.values") | sha256sum }}
        {{- range $key, $value := include "kata-deploy.labelTexts" $root.Values.podAnnotations | fromYaml }}
        {{ toJson $key }}: {{ $value | toJson }}
        {{- end }}
      labels:
        {{- include "kata-deploy.selectorLabels" (list $root "node-job") | nindent 8 }}
        {{- with include "kata-deploy.extraPodLabels" $root | trim }}
        {{- . | nindent 8 }}
        {{- end }}
    spec:
      # The kubelet of a Windows node rejects the pod at once.
      os:
        name: linux
      restartPolicy: Never
      serviceAccountName: {{ include "kata-deploy.labeller.serviceAccount" $root }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      # A pod that is deleted has time to finish its change, for example a restart of the runtime.
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
      {{- with initial .stages }}
      initContainers:
        {{- range . }}
        {{- include "kata-deploy.stageContainer" (list $root . $runtime) | trim | nindent 8 }}
        {{- end }}
      {{- end }}
      containers:
        {{- include "kata-deploy.stageContainer" (list $root (last .stages) $runtime) | trim | nindent 8 }}
      volumes:
        {{- include "kata-deploy.valuesVolume" $root | trim | nindent 8 }}
        {{- if not (include "kata-deploy.dispatcherLabels" $root) }}
        {{- include "kata-deploy.credentialsVolume" (include "kata-deploy.tokenSeconds" $root) | trim | nindent 8 }}
        - name: reports
          emptyDir: {}
        {{- end }}
        {{- if and (include "kata-deploy.userDropIn.secret" $root) (has "cri" .stages) (ne $runtime "crio") }}
        {{- include "kata-deploy.userDropIn.volume" $root | nindent 8 }}
        {{- end }}
        {{- if has "artifacts" .stages }}
        {{- with include "kata-deploy.payloadVolume" $root | trim }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- end }}
        {{- include "kata-deploy.hostVolumes" (list $root $paths) | trim | nindent 8 }}
{{- end -}}

{{- define "kata-deploy.nodeJobTTL" -}}
{{- $ttl := (.Values.job).ttlSecondsAfterFinished -}}
{{- $ttl = ternary 600 $ttl (kindIs "invalid" $ttl) | int -}}
{{- if lt $ttl 60 -}}
{{- include "kata-deploy.refuse" (list . (printf "job.ttlSecondsAfterFinished: %d is too short for the dispatcher to read the result of a Job; set 60 or more" $ttl)) -}}
{{- end -}}
{{- $ttl -}}
{{- end -}}
