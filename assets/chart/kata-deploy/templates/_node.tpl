{{- /* The part of the values that kata-node reads on the node. It interprets them; the chart passes them on. */ -}}

{{- define "kata-deploy.node.values" -}}
{{- $values := dict -}}
{{- range $key := list "containerd" "customRuntimes" "debug" "defaultShim" "devkit" "env" "snapshotter" "startupTaints" -}}
{{- $value := index $.Values $key -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $_ := set $values $key $value -}}
{{- end -}}
{{- end -}}
{{- with $values.containerd -}}
{{- $containerd := omit . "userDropInSecret" -}}
{{- with include "kata-deploy.userDropIn.digest" $ -}}
{{- /* kata-node refuses another content. The digest of this file is in the pod template. */ -}}
{{- $_ := set $containerd "userDropInSecret" (dict "digest" .) -}}
{{- end -}}
{{- $_ := set $values "containerd" $containerd -}}
{{- end -}}
{{- $_ := set $values "k8sDistribution" (include "kata-deploy.distribution" .) -}}
{{- $shims := dict "disableAll" ((.Values.shims).disableAll | default false) -}}
{{- range $name, $shim := .Values.shims -}}
{{- if kindIs "map" $shim -}}
{{- /* RuntimeClasses are created by the chart. A change of them must not change the node. */ -}}
{{- $_ := set $shims $name (omit $shim "runtimeClass") -}}
{{- end -}}
{{- end -}}
{{- if eq (len $shims) 1 -}}
{{- /* If the file names no shim, kata-node installs the default shim. */ -}}
{{- $_ := set $shims "disableAll" true -}}
{{- end -}}
{{- $_ := set $values "shims" $shims -}}
{{- /* JSON, because a stage starts faster without a parser for YAML. toYaml writes nothing at all for a text with
       one of these characters, which JSON allows. */ -}}
{{- $text := toPrettyJson $values -}}
{{- range concat (untilStep 0x7f 0xa0 1) (list 0xfffe 0xffff) -}}
{{- $text = replace (printf "%c" .) (printf "\\u%04x" .) $text -}}
{{- end -}}
{{- $text -}}
{{- end -}}

{{- /* The Secret with containerd's drop-in; empty if there is none. */ -}}
{{- define "kata-deploy.userDropIn.secret" -}}
{{- ((.Values.containerd).userDropInSecret).name | default "" -}}
{{- end -}}

{{- define "kata-deploy.userDropIn.key" -}}
{{- ((.Values.containerd).userDropInSecret).key | default "userDropIn.toml" -}}
{{- end -}}

{{- /* The sha256 of that drop-in: the given one, or that of the Secret in the cluster. */ -}}
{{- define "kata-deploy.userDropIn.digest" -}}
{{- $name := include "kata-deploy.userDropIn.secret" . -}}
{{- $key := include "kata-deploy.userDropIn.key" . -}}
{{- $given := ((.Values.containerd).userDropInSecret).digest -}}
{{- if and $name (.Values.containerd).userDropIn -}}
{{- include "kata-deploy.refuse" (list . "containerd.userDropInSecret.name: containerd.userDropIn is set too, and only one of both can be the drop-in; remove one") -}}
{{- else if and $name $given -}}
{{- $given -}}
{{- else if $name -}}
{{- $content := get ((lookup "v1" "Secret" .Release.Namespace $name).data | default dict) $key -}}
{{- if $content -}}
{{- $content | b64dec | sha256sum -}}
{{- else -}}
{{- include "kata-deploy.refuse" (list . (printf "containerd.userDropInSecret.digest: is empty, and helm finds no key %s in a Secret %s of the namespace %s; create the Secret before the release, or set the digest (sha256sum FILE) where helm has no cluster, as in helm template" $key $name .Release.Namespace)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The Secret as a file, for the containers that need it. Missing, it must not stop the pod without an error. */ -}}
{{- define "kata-deploy.userDropIn.volume" -}}
- name: user-drop-in
  secret:
    secretName: {{ include "kata-deploy.userDropIn.secret" . }}
    defaultMode: 0400
    optional: true
    items:
      - key: {{ include "kata-deploy.userDropIn.key" . }}
        path: userDropIn.toml
{{- end -}}

{{- define "kata-deploy.userDropIn.mount" -}}
- name: user-drop-in
  mountPath: /etc/kata-node-secret
  readOnly: true
{{- end -}}

{{- define "kata-deploy.userDropIn.env" -}}
- name: KATA_NODE_USER_DROP_IN
  value: /etc/kata-node-secret/userDropIn.toml
{{- end -}}

{{- define "kata-deploy.node.configMap" -}}
{{ include "kata-deploy.fullname" . }}-node
{{- end -}}
